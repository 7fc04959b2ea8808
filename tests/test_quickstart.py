import runpy
from pathlib import Path

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.py"


def test_the_quickstart_runs_with_the_packaged_checkpoint(capsys):
    runpy.run_path(str(QUICKSTART), run_name="__main__")
    output = capsys.readouterr().out
    assert "read 100 real frames" in output
    assert "4 dreams: (4, 64, 64, 3)" in output
