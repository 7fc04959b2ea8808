"""The table of the rows: what it takes from records of real evaluations, and which records it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import VECTOR_POSE, save_tiny_checkpoint, tiny_model
from tests.toy_store import TOY_ENV, toy_episode, toy_header
from training.evaluate import main as evaluate
from training.evaluate import total_frames_seen
from training.store.episode_store import EpisodeWriter, create_store
from training.table import main, make_table, markdown

FIRST = 7_000_000


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two random models on the same walks."""
    folder = tmp_path_factory.mktemp("records")
    writer = EpisodeWriter(create_store(folder / "walks", replace(toy_header(), max_episode_steps=40)), "test")
    for seed in range(FIRST, FIRST + 3):
        writer.write(toy_episode(seed))
    made = {}
    for seed, recipe in enumerate(("some_recipe", "mamba2")):
        checkpoint = save_tiny_checkpoint(folder / f"{recipe}.safetensors", tiny_model(seed, pose=VECTOR_POSE))
        out = folder / f"{recipe}.json"
        options = ["--protocol", "retrieval", "--conditioning", "pose", "--context", "16", "--frames", "16"]
        options += ["--env", TOY_ENV, "--policy", "random", "--seeds", f"{FIRST}-{FIRST + 2}", "--device", "cpu"]
        evaluate(["--checkpoint", str(checkpoint), "--rollouts", str(folder / "walks"), "--out", str(out), *options])
        made[recipe] = json.loads(out.read_text()) | {"recipe": recipe, "total_frames_seen": 12_345_678}
    return made


def written(folder: Path, records: dict[str, Any], **changes: Any) -> list[str]:
    """Files of the records; `changes` are made to the last."""
    paths = []
    for i, (name, record) in enumerate(records.items()):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(record | (changes if i == len(records) - 1 else {})))
        paths.append(str(path))
    return paths


def test_the_command_writes_all_rows_beside_the_papers_and_a_plot(
    tmp_path: Path, records: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "retrieval.json"
    first, second = written(tmp_path, records)
    main(["--records", f"ours, small={first}", second, "--out", str(out)])
    table = json.loads(out.read_text())
    assert [row["label"] for row in table["rows"]] == ["ours, small", "Mamba2"]
    for row, record in zip(table["rows"], records.values(), strict=True):
        assert row["psnr"]["all"] == record["columns"]["psnr"]["kept"]["all"]
        assert row["cleared"]["psnr"]["all"] == record["columns"]["psnr"]["cleared"]["all"]
        assert row["psnr_by_distance"] == record["columns"]["psnr"]["kept"]["by_distance"]
        assert row["num_parameters"] == record["num_parameters"] > 10_000
    assert [row["paper"]["psnr"] for row in table["rows"]] == [30.8, 20.4]
    assert [row["label"] for row in table["references"]] == ["repeating the last frame"]
    assert table["seeds"] == [[FIRST, FIRST + 2]]
    assert table["command"].startswith("python -m training.table --records")
    lines = capsys.readouterr().out.splitlines()
    value = records["mamba2"]["columns"]["psnr"]["kept"]["all"]["value"]
    assert lines[3].startswith(f"| Mamba2 | {value:.1f} (") and lines[3].endswith("| 12.3M | 20.4 / .747 / .313 |")
    assert len({line.count("|") for line in lines}) == 1
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 17}, "has frames 17, the first record 16"),
        ({"conditioning": "action"}, "has conditioning action"),
        ({"feedback_interval": 2}, "has feedback_interval 2, the first record 1"),
        ({"seeds": [FIRST]}, "has seeds"),
        ({"total_frames_seen": 13_000_000}, "differ in frames seen .*12,345,678.*13,000,000"),
        ({"total_frames_seen": None}, "unknown"),
        ({"num_parameters": 10}, "differ in parameters"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(
    tmp_path: Path, records: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_table(written(tmp_path, records, **changes), unequal=False, argv=[])


def test_rows_that_saw_other_numbers_of_frames_are_taken_if_asked_for(tmp_path: Path, records: dict[str, Any]) -> None:
    for seen, shown in ((2_000_000_000, "2.00B"), (12_345, "12,345")):
        paths = written(tmp_path, records, total_frames_seen=seen, num_parameters=7)
        table = make_table(paths, unequal=True, argv=[])
        assert list(table["unequal"]) == ["frames seen", "parameters"]
        assert f"| 0.0M | {shown} |" in markdown(table)
        assert f"Rows differ in frames seen: LSSVWM (ours): 12,345,678, Mamba2: {seen:,}." in markdown(table)
    equal = make_table(written(tmp_path, records), unequal=True, argv=[])
    assert not equal["unequal"] and "differ" not in markdown(equal)


def test_other_rows_are_set_against_ours_in_the_same_mazes(tmp_path: Path, records: dict[str, Any]) -> None:
    columns = copy.deepcopy(records["some_recipe"]["columns"])
    kept = columns["psnr"]["kept"]
    kept["per_maze"] = [psnr + 0.25 for psnr in kept["per_maze"]]
    table = make_table(written(tmp_path, records, columns=columns), unequal=False, argv=[])
    assert "psnr_minus_ours" not in table["rows"][0]
    # Mazes differ by more than that, so the rows' own intervals overlap: the same mazes tell them apart.
    assert table["rows"][1]["psnr_minus_ours"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert "| +0.25 (+0.25, +0.25) |" in markdown(table)
    both_ours = make_table(written(tmp_path, records, recipe="another"), unequal=False, argv=[])
    assert ["psnr_minus_ours" in row for row in both_ours["rows"]] == [False, True]  # the first of ours is the measure
    no_ours = make_table(written(tmp_path, records, recipe="mamba2")[1:], unequal=False, argv=[])
    assert not any("psnr_minus_ours" in row for row in no_ours["rows"])


def test_every_row_says_what_its_cleared_memory_has_read(tmp_path: Path, records: dict[str, Any]) -> None:
    table = make_table(written(tmp_path, records, definitions={"cleared": "something else"}), unequal=False, argv=[])
    means = [row["cleared"]["means"] for row in table["rows"]]
    assert means == [records["some_recipe"]["definitions"]["cleared"], "something else"]
    assert "cleared" not in table["definitions"]


def test_rows_of_other_walks_are_refused(tmp_path: Path, records: dict[str, Any]) -> None:
    columns = copy.deepcopy(records["mamba2"]["columns"])
    columns["psnr"]["copy_last"]["per_maze"][1] += 0.1
    with pytest.raises(ValueError, match="on other walks"):
        make_table(written(tmp_path, records, columns=columns), unequal=False, argv=[])


def test_rows_whose_memories_were_refreshed_are_not_set_beside_others(tmp_path: Path, records: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="refresh_steps 512, the first record 0"):
        make_table(written(tmp_path, records, refresh_steps=512), unequal=False, argv=[])


def test_what_is_no_record_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, text in (("empty", "{}"), ("broken", "{")):
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(SystemExit, match=rf"error: .*{name}\.json"):
            main(["--records", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / "table.json")])
    with pytest.raises(SystemExit, match="No records"):
        main(["--records", "--out", str(tmp_path / "table.json")])


def test_frames_of_the_runs_that_a_run_goes_on_from_count() -> None:
    assert total_frames_seen({"frames_seen": 5, "continues": {"frames_seen": 7}}) == 12
    assert total_frames_seen({"frames_seen": 5, "continues": {}}) is None
