"""The README says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_quickstart_in_the_readme_is_the_example_that_runs() -> None:
    text = (ROOT / "examples" / "quickstart.py").read_text()
    example = text[text.index("import gymnasium") :].strip()
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert example in [block.strip() for block in blocks]


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_figures_of_the_packaged_model_are_those_of_its_files() -> None:
    figures = json.loads((ROOT / "docs" / "results" / "short_look.json").read_text())
    frame, reward = figures["frame"], figures["reward"]["from_noise"]
    assert f"{frame['psnr']:.1f} dB" in README
    assert f"{frame['psnr_copy_last']:.1f} dB" in README
    assert f"{reward['precision']:.2f} / {reward['recall']:.2f}" in README
    retrieval = json.loads((ROOT / "docs" / "results" / "retrieval.json").read_text())["columns"]
    psnr, ssim = (retrieval[metric]["kept"]["all"]["value"] for metric in ("psnr", "ssim"))
    assert f"| **{psnr:.1f} dB** / {ssim:.3f} |".replace("/ 0.", "/ .") in README


def test_the_figures_of_speed_are_those_of_their_files() -> None:
    results = ROOT / "docs" / "results"
    speed = json.loads((results / "speed_h200.json").read_text())
    rows = speed["latency"]["rows"]
    ours = {row["frame"]: row for row in rows if (row["model"], row.get("output")) == ("ours", "device")}
    for frame in (10, 10_000):
        row = ours[frame]
        assert f"| **ours**, frame {frame:,} | **{row['median_ms']:.3f}** ({row['p99_ms']:.3f}) |" in README
    rates = [row["frames_per_second"] for row in speed["batch"]["rows"] if row["batch"] in (1, 16, 64, 256, 1024)]
    real = speed["batch"]["real_env"]["one_process_as_published"]
    assert f"| frames/s | {' | '.join(f'{rate:,.0f}' for rate in rates)} | {real} |" in README
