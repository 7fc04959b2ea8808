import os
import signal
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from agents.environments.process_batch import ProcessBatch
from tests.agents.toy_batch import BATCH_ID, make_several

KWARGS = {"terminate_after_rewards": 1}


@pytest.fixture(scope="module")
def batch():
    batch = ProcessBatch(BATCH_ID, 2, 2, KWARGS)
    yield batch
    batch.close()


def test_processes_of_several_environments_are_one_batch_that_resets_in_the_step_that_ends_them(batch):
    single: Any = make_several(4, AutoresetMode.SAME_STEP, **KWARGS)
    actions = np.random.default_rng(0).integers(0, 3, (30, 4))
    np.testing.assert_array_equal(batch.reset(seed=5)[0], single.reset(seed=5)[0])
    ends = np.zeros(2, np.int64)
    for row in actions:
        ours, theirs = batch.step(row), single.step(row)
        for mine, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(mine, other)
        ended = ours[2] | ours[3]
        ends += ours[2].sum(), ours[3].sum()
        assert ("final_obs" in ours[4]) == ended.any()
        for index in np.flatnonzero(ended):
            np.testing.assert_array_equal(ours[4]["final_obs"][index], theirs[4]["final_obs"][index])
    assert (ends > 0).all()  # episodes that terminated and such that were cut were both seen


def test_a_list_of_seeds_gives_one_to_each_row(batch):
    frames = batch.reset(seed=[3, 4, 3, 4])[0]
    np.testing.assert_array_equal(frames[:2], frames[2:])
    assert (frames[0] != frames[1]).any()


def test_what_does_not_fit_is_a_clear_error(batch):
    with pytest.raises(ValueError, match="no options"):
        batch.reset(options={"reset_mask": np.ones(4, np.bool_)})
    with pytest.raises(ValueError, match="each of 4 rows"):
        batch.step(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"failed: .*multiple of 4"):
        ProcessBatch(BATCH_ID, 1, 2, {"size": 15})


@pytest.mark.parametrize(
    ("signal_number", "said"),
    [
        (signal.SIGKILL, r"1 environments was killed.*memory.*2 environments.*Lower num_envs"),
        (signal.SIGTERM, "code -15"),
    ],
)
def test_a_process_that_dies_is_named_with_what_to_do(signal_number, said):
    batch = ProcessBatch(BATCH_ID, 2, 1, KWARGS)
    batch.reset(seed=0)
    os.kill(batch._processes[1].pid, signal_number)
    batch._processes[1].join(10)
    with pytest.raises(RuntimeError, match=said):
        batch.step(np.zeros(2, np.int64))
    assert not any(process.is_alive() for process in batch._processes)
