import json
import sys
import types

import pytest
import safetensors.torch
import torch

import wm_gym.checkpoint
from tests.tiny import DISCRETE, OBSERVATION_SPACE, save_tiny_checkpoint, tiny_model
from wm_gym.checkpoint import available_devices, load_checkpoint, packaged_names, resolve_device, save_checkpoint


@pytest.fixture
def path(tmp_path):
    return save_tiny_checkpoint(tmp_path / "tiny.safetensors")


def write(path, **changes):
    arguments = {
        "config": {"width": 8},
        "tensors": {"a": torch.arange(3.0), "count": torch.tensor(3)},
        "observation_space": OBSERVATION_SPACE,
        "action_space": DISCRETE,
        "metadata": {"frames_seen": 10, "command": "train"},
    }
    save_checkpoint(path, **{**arguments, **changes})


def test_everything_that_was_saved_is_loaded(tmp_path):
    write(tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.config == {"width": 8}
    assert loaded.metadata == {"frames_seen": 10, "command": "train"}
    assert (loaded.observation_space, loaded.action_space) == (OBSERVATION_SPACE, DISCRETE)
    assert torch.equal(loaded.tensors["a"], torch.arange(3.0))
    assert loaded.tensors["count"].dtype == torch.int64


def test_dtype_applies_to_floating_point_tensors_only(tmp_path):
    write(tmp_path / "a.safetensors", dtype=torch.bfloat16)
    tensors = load_checkpoint(tmp_path / "a.safetensors").tensors
    assert (tensors["a"].dtype, tensors["count"].dtype) == (torch.bfloat16, torch.int64)


def test_tensors_that_share_storage_can_be_saved(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    write(tmp_path / "a.safetensors", tensors={"whole": whole, "part": whole[:, 1]})
    assert torch.equal(load_checkpoint(tmp_path / "a.safetensors").tensors["part"], whole[:, 1])


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(path, metadata={"not json": object()})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_world_model_is_rebuilt_from_its_checkpoint(path):
    from wm_gym.world_model import WorldModel

    model, expected = WorldModel.from_checkpoint(str(path)), tiny_model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_an_unknown_name_lists_the_packaged_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(wm_gym.checkpoint, "_WEIGHTS_DIR", tmp_path)
    save_tiny_checkpoint(tmp_path / "some-maze.safetensors")
    with pytest.raises(FileNotFoundError, match="some-maze"):
        load_checkpoint("other-maze")
    assert load_checkpoint("some-maze").metadata["name"] == "tiny"


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_a_value_error(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged, truncated"):
        load_checkpoint(path)


def test_a_foreign_file_is_a_value_error(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_text("hello world, this is no checkpoint")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_checkpoint(foreign)
    for header in (None, {"wm_gym": "no json"}, {"wm_gym": json.dumps({"format": "other", "version": 1})}):
        safetensors.torch.save_file({"a": torch.ones(2)}, foreign, header)
        with pytest.raises(ValueError, match=r"no wm_gym\.checkpoint"):
            load_checkpoint(foreign)


def test_a_newer_version_is_a_value_error(path, monkeypatch):
    monkeypatch.setattr(wm_gym.checkpoint, "FORMAT_VERSION", 2)
    save_tiny_checkpoint(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 2"):
        load_checkpoint(path)


def test_a_header_without_an_entry_is_a_value_error(tmp_path):
    header = json.dumps({"format": "wm_gym.checkpoint", "version": 1})
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"wm_gym": header})
    with pytest.raises(ValueError, match="lacks the entry"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("device", ["cuda:99", "xla", "no device", ""])
def test_a_device_that_is_not_there_is_a_value_error_naming_those_that_are(path, device):
    with pytest.raises(ValueError, match=r"not there; available: cpu"):
        load_checkpoint(path, device)


def test_devices_that_are_there_are_accepted():
    for device in available_devices():
        assert str(resolve_device(device)) == device
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


def test_a_hub_id_without_the_hub_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_checkpoint("owner/name")


def test_a_hub_id_is_downloaded_and_a_missing_one_is_a_file_not_found_error(path, monkeypatch):
    class HubError(Exception):
        pass

    def download(hub_id, filename):
        if hub_id != "owner/there":
            raise HubError("404")
        assert filename == "model.safetensors"
        return str(path)

    errors = types.ModuleType("huggingface_hub.errors")
    hub = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(errors, "HfHubHTTPError", HubError, raising=False)
    monkeypatch.setattr(errors, "LocalEntryNotFoundError", HubError, raising=False)
    monkeypatch.setattr(hub, "hf_hub_download", download, raising=False)
    monkeypatch.setattr(hub, "errors", errors, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    assert load_checkpoint("owner/there").metadata["name"] == "tiny"
    with pytest.raises(FileNotFoundError, match="Hugging Face Hub"):
        load_checkpoint("owner/missing")


def test_the_packaged_checkpoint_is_a_world_model_of_memory_maze():
    from wm_gym.world_model import WorldModel, WorldModelConfig

    assert "memory-maze" in packaged_names()
    loaded = load_checkpoint("memory-maze")
    assert loaded.observation_space.shape == (64, 64, 3)
    assert loaded.action_space.n == 6  # pyright: ignore[reportAttributeAccessIssue]
    assert WorldModel.from_checkpoint("memory-maze").config == WorldModelConfig()
