"""The pages say what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
SPEED = (ROOT / "docs" / "speed.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "wm_gym" / "weights" / "memory-maze.md"]


def test_the_quickstart_in_the_readme_is_the_example_that_runs() -> None:
    text = (ROOT / "examples" / "quickstart.py").read_text()
    example = text[text.index("import gymnasium") :].strip()
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert example in [block.strip() for block in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_result_is_cited_by_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    results = (ROOT / "docs" / "results").glob("*.*")
    assert [path.name for path in results if path.name not in text] == []


def test_the_readme_is_short() -> None:
    assert len(README) < 10_000


def test_the_figures_of_the_packaged_model_are_those_of_its_files() -> None:
    figures = json.loads((ROOT / "docs" / "results" / "short_look.json").read_text())
    frame, reward = figures["frame"], figures["reward"]["from_noise"]
    assert f"{frame['psnr']:.1f} dB" in RESULTS
    assert f"{frame['psnr_copy_last']:.1f} dB" in RESULTS
    assert f"{reward['precision']:.2f} / {reward['recall']:.2f}" in RESULTS
    retrieval = json.loads((ROOT / "docs" / "results" / "retrieval.json").read_text())["columns"]
    psnr, ssim = (retrieval[metric]["kept"]["all"]["value"] for metric in ("psnr", "ssim"))
    assert f"| **{psnr:.1f} dB** / {ssim:.3f} |".replace("/ 0.", "/ .") in RESULTS


def test_the_figures_of_speed_are_those_of_their_files() -> None:
    results = ROOT / "docs" / "results"
    speed = json.loads((results / "speed_h200.json").read_text())
    rows = speed["latency"]["rows"]
    ours = {row["frame"]: row for row in rows if (row["model"], row.get("output")) == ("ours", "device")}
    for frame in (10, 10_000):
        row = ours[frame]
        assert f"| **ours**, frame {frame:,} | **{row['median_ms']:.3f}** ({row['p99_ms']:.3f}) |" in SPEED
    rates = [row["frames_per_second"] for row in speed["batch"]["rows"] if row["batch"] in (1, 16, 64, 256, 1024)]
    real = speed["batch"]["real_env"]["one_process_as_published"]
    assert f"| frames/s | {' | '.join(f'{rate:,.0f}' for rate in rates)} | {real} |" in SPEED
