"""The page that shows a comparison: one HTML file with everything in it, which loads nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADINGS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_std": "± PSNR",
    "ssim_std": "± SSIM",
    "psnr_copy_last": "still picture",
}
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Report:
    """What the page shows. Texts are plain; they are escaped here."""

    title: str
    lead: str
    settings: dict[str, str]
    notes: Sequence[str]
    cards: Sequence[tuple[str, str, str]]  # name, figure, what it is measured against
    video: tuple[Path, bytes] | None  # the film, and a PNG that stands for it until it is played
    video_caption: str
    plots: Sequence[tuple[str, str]]  # SVG element, caption
    strips: Sequence[tuple[str, Path]]  # caption, PNG
    tables: Sequence[tuple[str, Any]]  # caption, pandas DataFrame
    definitions: dict[str, str]
    provenance: dict[str, str]


def render(report: Report) -> str:
    """The page, a whole HTML document."""
    body = [
        f"<header><h1>{_text(report.title)}</h1><p class=lead>{_text(report.lead)}</p>",
        f"{_chips(report.settings)}</header>",
        *(f"<p class=note>{_text(note)}</p>" for note in report.notes),
        "<section class=cards>" + "".join(_card(*card) for card in report.cards) + "</section>",
    ]
    if report.video is not None:
        source = _data_url("video/mp4", report.video[0].read_bytes())
        poster = _data_url("image/png", report.video[1])
        body.append(
            f"<section><figure><video controls loop muted playsinline poster='{poster}' src='{source}'></video>"
            f"<figcaption>{_text(report.video_caption)}</figcaption></figure></section>"
        )
    for svg, caption in report.plots:
        body.append(f"<section><figure>{svg}<figcaption>{_text(caption)}</figcaption></figure></section>")
    body.append("<section><h2>Film strips</h2>")
    for caption, path in report.strips:
        image = f"<img alt='{_text(caption)}' src='{_data_url('image/png', path.read_bytes())}'>"
        body.append(f"<figure class=strip>{image}<figcaption>{_text(caption)}</figcaption></figure>")
    body.append("</section>")
    for caption, table in report.tables:
        body.append(f"<section><h2>{_text(caption)}</h2><div class=scroll>{_table(table)}</div></section>")
    body.append(f"<section><h2>What the figures mean</h2>{_list(report.definitions)}</section>")
    body.append(f"<section><h2>Where they come from</h2>{_list(report.provenance)}</section>")
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{_text(report.title)}</title><style>{STYLE.read_text()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _card(name: str, figure: str, note: str) -> str:
    return f"<div><span>{_text(name)}</span><b>{_text(figure)}</b><small>{_text(note)}</small></div>"


def _chips(settings: dict[str, str]) -> str:
    chips = (f"<li><span>{_text(name)}</span> {_text(value)}</li>" for name, value in settings.items())
    return f"<ul class=chips>{''.join(chips)}</ul>"


def _list(entries: dict[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in entries.items()) + "</dl>"
    )


def _table(table: Any) -> str:
    head = "".join(f"<th>{_text(HEADINGS.get(str(name), str(name).replace('_', ' ')))}</th>" for name in table.columns)
    rows = ("".join(f"<td>{_text(_cell(value))}</td>" for value in row) for row in table.itertuples(index=False))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None or value == "" or value != value:  # NaN, in pandas' way of missing
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) else f"{value:.2f}"
    return str(value)


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
