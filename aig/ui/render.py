"""Pure functions from schedules, frames and scores to HTML and SVG; all text from outside passes through ``escape``."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Gradio compiles HTML templates to JavaScript template literals, so the characters that mean something there are
# written as entities too: a prompt is only ever text.
_TEMPLATE_CHARACTERS = {ord(c): f"&#{ord(c)};" for c in "`$\\{}"}


def escape(text: object) -> str:
    """Text that means nothing to HTML, to an attribute, or to a JavaScript template literal."""
    return html.escape(str(text), quote=True).translate(_TEMPLATE_CHARACTERS)


def shape(images: int) -> tuple[int, int]:
    """Columns and rows of the most nearly square grid that holds ``images`` cells."""
    columns = math.ceil(math.sqrt(images))
    return columns, math.ceil(images / columns)


def mosaic(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> one (rows*H, columns*W, 3) picture, cells in reading order, unused cells black."""
    n, height, width, channels = images.shape
    columns, rows = shape(n)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:n] = images
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def data_url(picture: np.ndarray, *, final: bool) -> str:
    """A picture as a data URL: lossless PNG when final, small WebP for the previews on the way."""
    buffer = io.BytesIO()
    if final:
        Image.fromarray(picture).save(buffer, "png")
    else:
        Image.fromarray(picture).save(buffer, "webp", quality=82, method=0)
    return f"data:image/{'png' if final else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- the stage: the sentence, the progress, the columns, the open attributes ---

FLAG = '<span class="flag">collapsed most</span>'


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of one column, already worded: "0.267", "−0.14", "0.24 to 0.29"."""

    label: str
    value: str
    delta: str = ""  # against base
    sure: bool = True  # the interval of the difference excludes 0
    note: str = ""  # its interval, or why there is none


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How one column's images divide over the values of one attribute; shares add up to 1."""

    kind: str
    shares: Mapping[str, float]
    entropy: float  # normalised, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One grid with its scores; ``kind`` chooses the colour: base, tuned or aig."""

    kind: str
    title: str
    about: str
    metrics: Sequence[Metric]
    picture: str  # data URL, "" before the first preview
    alt: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything right of the controls at one moment of a run."""

    state: str  # idle, waiting, running, done or stopped
    asked: str  # HTML made by ``asked``
    sentence: str
    status: str
    share: float  # of the steps done, in [0, 1]
    images: int
    columns: Sequence[Column]
    attributes: Mapping[str, Sequence[Bar]]
    notice: str = ""
    seed: int = 0  # of the first image


def stage(view: Stage) -> str:
    """The whole stage; its structure does not depend on the state, so updates leave the layout in place."""
    quiet = "" if view.state == "done" else ' class="quiet"'
    live = "off" if view.state == "running" else "polite"  # a new sentence every second is too much to listen to
    percent = f"{100 * view.share:.0f}"
    notice = f'<p class="notice" role="status">{escape(view.notice)}</p>' if view.notice else ""
    columns = "".join(_column(column, view) for column in view.columns)
    return (
        f'<div class="stage" data-state="{escape(view.state)}">'
        f'<div class="sentence" aria-live="{live}"><p class="asked">{view.asked}</p>'
        f"<h2{quiet}>{escape(view.sentence)}</h2></div>"
        '<div class="progress"><div class="rail" role="progressbar" aria-label="Denoising" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
        f"<span>{escape(view.status)}</span></div>"
        f'<div class="notices">{notice}</div>'
        f'<div class="arms" style="--count:{len(view.columns)}">{columns}</div>{_attributes(view)}</div>'
    )


def asked(prompt: str, *, seeds: str) -> str:
    """The line above the sentence: what was asked for."""
    words = f"<q>{escape(prompt)}</q>" if prompt.strip() else "<q>anything</q> (no prompt)"
    return f"{words} · {escape(seeds)}, the same in every column"


def _column(column: Column, view: Stage) -> str:
    across, down = shape(view.images)
    picture = f'<img src="{column.picture}" alt="{escape(column.alt)}" decoding="sync">' if column.picture else ""
    cells = "".join(_cell(k, column, view) for k in range(across * down))
    scores = "".join(map(_metric, column.metrics))
    return (
        f'<article class="arm {escape(column.kind)}">'
        f"<h3>{escape(column.title)}<small>{escape(column.about)}</small></h3>"
        f'<dl class="scores">{scores}</dl>'
        f'<div class="frame"><figure class="mosaic{"" if picture else " empty"}" '
        f'style="--across:{across};--down:{down};aspect-ratio:{across}/{down}">{picture}'
        f'<div class="cells" style="grid-template:repeat({down},1fr)/repeat({across},1fr)">{cells}</div>'
        "</figure></div></article>"
    )


def _cell(k: int, column: Column, view: Stage) -> str:
    """One place of a grid: a button once there is an image; the first is the grid's tab stop, arrows reach the rest."""
    if k >= view.images:
        return '<i class="blank"></i>'
    if not column.picture:
        return "<i></i>"
    name = escape(f"seed {view.seed + k}, {column.title}")
    return f'<button type="button" tabindex="{-1 if k else 0}" aria-haspopup="dialog" aria-label="{name}"></button>'


def _metric(metric: Metric) -> str:
    sure = "sure" if metric.sure else "unsure"
    return (
        f'<div><dt>{escape(metric.label)}</dt><dd>{escape(metric.value)}<em class="{sure}">{escape(metric.delta)}</em>'
        f"<small>{escape(metric.note)}</small></dd></div>"
    )


def _attributes(view: Stage) -> str:
    if not view.attributes:
        return ""
    lost = {name: bars[0].entropy - bars[1].entropy for name, bars in view.attributes.items() if len(bars) > 1}
    most = max(lost, key=lost.get, default=None)
    flagged = most if view.state == "done" and lost.get(most, 0) > 0.1 else None
    rows = "".join(
        f'<section class="attribute"><h4>{escape(name)}{FLAG if name == flagged else ""}</h4>'
        f"{''.join(map(_bar, bars))}</section>"
        for name, bars in view.attributes.items()
    )
    return (
        '<section class="open"><header><h3>What collapsed?</h3><p>How the images divide over what the prompt left '
        "open: 1.00 is as varied as can be, 0.00 is all alike.</p></header>"
        f'<div class="attributes">{rows}</div></section>'
    )


def _bar(bar: Bar) -> str:
    """Segments in the declared order of the values; the larger, the stronger the colour."""
    drawn = [(value, share) for value, share in bar.shares.items() if share > 0.005]
    segments = "".join(_segment(value, share) for value, share in drawn)
    spoken = ", ".join(f"{value} {share:.0%}" for value, share in drawn)
    title = {"aig": "AIG"}.get(bar.kind, bar.kind)
    return (
        f'<div class="bar {escape(bar.kind)}"><b>{escape(title)}</b>'
        f'<div class="shares" role="img" aria-label="{escape(spoken)}">{segments}</div>'
        f"<span>{bar.entropy + 0.0:.2f}</span></div>"  # + 0.0: no minus before a zero
    )


def _segment(value: str, share: float) -> str:
    """One value's part of a bar, named inside if the name fits."""
    fits = share * 26 > len(value)
    return (
        f'<i class="{"named" if fits else ""}" style="--share:{share:.3f};--tint:{22 + 60 * share:.0f}%" '
        f'title="{escape(value)} {share:.0%}">{escape(value) if fits else ""}</i>'
    )
