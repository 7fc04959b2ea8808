import json

from examples.drive_batch import main


def test_the_example_drives_a_batch_and_writes_what_it_saw(tmp_path, capsys):
    main(num_envs=2, steps=3, device="cpu", context_frames=2, every=2, out=tmp_path / "drive.json")
    assert "step 2:" in capsys.readouterr().out
    record = json.loads((tmp_path / "drive.json").read_text())
    assert [part["step"] for part in record["parts"]] == [2, 3]
    assert record["parts"][0]["bytes"] == record["parts"][1]["bytes"] == record["state_bytes"]
    assert all(part["frames_per_second"] > 0 for part in record["parts"])
