"""Processes that are killed, disks that are full, two collectors at once: done for real, and the store stays whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.paths import ROOT
from tests.toy_store import TOY_ENV, make_toy_store, toy_episode
from training.store.episode_store import EpisodeWriter, open_store
from training.store.tools import differing_part, problems

# A process that is forked off before zarr has started a thread writes until it is killed, in the middle of whatever.
KILLED_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from tests.toy_store import toy_episode, toy_header
from training.store.episode_store import EpisodeWriter, open_store
path = Path(sys.argv[1])
episodes = [toy_episode(seed) for seed in range(400)]
delays = random.Random(0)
for killed in range(20):
    child = os.fork()
    if child == 0:
        writer = EpisodeWriter(open_store(path))
        for episode in episodes[killed * 20 : killed * 20 + 20]:
            writer.write(episode)
        time.sleep(60)
    time.sleep(delays.uniform(0.02, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""

# Writes episodes of noise, which does not compress, until that fails.
FILLING_WRITER = """
import dataclasses, itertools, resource, sys
import numpy as np
from pathlib import Path
from tests.toy_store import toy_episode, toy_header
from training.store.episode_store import EpisodeWriter, create_store
store = create_store(Path(sys.argv[1]), toy_header())
writer = EpisodeWriter(store)
writer.write(toy_episode(0))
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
noise = np.random.default_rng(0).integers(0, 256, (41, 16, 16, 3), np.uint8)
try:
    for seed in itertools.count(1):
        writer.write(dataclasses.replace(toy_episode(seed), frames=noise))
except OSError as error:
    sys.exit(f"{error} after {store.seeds()}")
"""

CHECK = """
import sys
from training.store.episode_store import open_store
from training.store.tools import problems
store = open_store(sys.argv[1])
assert [store.read(seed).seed for seed in store.seeds()] == store.seeds()
assert list(problems(store)) == [], list(problems(store))
assert not [path for path in store.path.rglob(".*")]
print(len(store.seeds()))
"""


def python(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)


def test_writers_killed_at_any_moment_leave_whole_episodes_and_nothing_else(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[])
    result = python(KILLED_WRITERS, tmp_path / "store")
    assert result.returncode == 0, result.stderr
    store = open_store(tmp_path / "store")
    assert 0 < len(store.seeds()) < 400
    for written in store.seeds():
        assert differing_part(store.read(written), toy_episode(written)) is None
    assert all("is half-written" in problem for problem in problems(store))
    EpisodeWriter(store).remove_abandoned()
    assert list(problems(store)) == []


def test_a_file_that_cannot_grow_costs_the_episode_and_nothing_else(tmp_path: Path) -> None:
    result = python(FILLING_WRITER, tmp_path / "store", 20_000)
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    store = open_store(tmp_path / "store")
    assert store.seeds() == [0]
    assert list(problems(store)) == []
    assert not list(store.path.rglob(".*"))


def test_a_full_disk_costs_the_episode_and_nothing_else(tmp_path: Path) -> None:
    """On a file system of 1 MB, which any user may mount in a namespace of their own where the kernel allows it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "fill.py").write_text(FILLING_WRITER)
    (tmp_path / "check.py").write_text(CHECK)
    script = (
        f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/disk || exit 77; export PYTHONPATH={ROOT}; "
        f"{sys.executable} {tmp_path}/fill.py {tmp_path}/disk/store; echo filled $?; "
        f"{sys.executable} {tmp_path}/check.py {tmp_path}/disk/store"
    )
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        result = subprocess.run([*namespace, "sh", "-c", script], cwd=ROOT, text=True, capture_output=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("util-linux is not installed")
    if result.returncode == 77 or "unshare failed" in result.stderr or "Operation not permitted" in result.stderr:
        pytest.skip(f"no file system may be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert "No space left on device" in result.stderr
    assert "filled 1" in result.stdout
    assert int(result.stdout.split()[-1]) > 5


def collectors(path: Path, num_episodes: int, count: int) -> list[subprocess.Popen[str]]:
    options = {"env": TOY_ENV, "policy": "random", "frames": num_episodes * 41, "workers": 1, "out": path}
    command = [sys.executable, "-m", "training.collect", *(f"--{name}={value}" for name, value in options.items())]
    pipe = subprocess.PIPE
    return [subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) for _ in range(count)]


@pytest.mark.slow
def test_two_collectors_on_one_store_share_the_work(tmp_path: Path) -> None:
    path = tmp_path / "store"
    recorded = []
    for collector in collectors(path, 40, count=2):
        output, errors = collector.communicate(timeout=120)
        assert collector.returncode == 0, errors
        assert "in 40 episodes of split 'train'" in output
        recorded.append(int(output.split(", ")[-1].split()[0]))
    assert sum(recorded) == 40
    store = open_store(path)
    assert store.seeds() == list(range(40))
    for seed in (0, 7, 39):
        np.testing.assert_array_equal(store.read(seed).frames, toy_episode(seed).frames)
    assert list(problems(store)) == []
    assert sorted(file.name for file in path.glob("train/.*")) == []


def test_what_a_killed_collector_had_claimed_is_recorded_by_the_other(tmp_path: Path) -> None:
    path = tmp_path / "store"
    first, second = collectors(path, 60, count=2)
    while len(list((path / "train").glob("episode_*"))) < 10:
        assert (first.poll(), second.poll()) == (None, None)
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    store = open_store(path)
    assert store.seeds() == list(range(60))
    assert list(problems(store)) == []


def test_two_writers_of_one_process_never_share_a_folder(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[])
    first, second = EpisodeWriter(store), EpisodeWriter(store)
    with first._temporary(3) as one, second._temporary(3) as other:
        assert one != other
