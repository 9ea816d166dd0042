"""Pure functions from schedules, frames and scores to HTML and SVG; all text from outside passes through ``escape``."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from aig.scores import ENOUGH

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


def reduced(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) of at most ``MAX_CELL`` pixels a side, larger ones resampled (Lanczos): more, no page can show."""
    _, height, width, _ = images.shape
    if max(height, width) <= MAX_CELL:
        return images
    scale = MAX_CELL / max(height, width)
    size = round(scale * width), round(scale * height)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in images])


def data_url(picture: np.ndarray, *, final: bool) -> str:
    """A picture as a data URL: lossless PNG when final and small, else WebP, better for the final one than for previews."""
    buffer = io.BytesIO()
    lossless = final and picture.nbytes <= MAX_LOSSLESS
    if lossless:
        Image.fromarray(picture).save(buffer, "png")
    else:
        Image.fromarray(picture).save(buffer, "webp", quality=92 if final else 82, method=0)
    return f"data:image/{'png' if lossless else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def cells(url: str, images: int) -> np.ndarray:
    """The (N, H, W, 3) uint8 images of a mosaic's data URL."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
    columns, rows = shape(images)
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    grid = picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    return grid.reshape(-1, height, width, 3)[:images]


# --- the stage: the sentence, the progress, the columns, the open attributes ---

MAX_CELL = 512  # pixels; two columns of cells fill a projector
MAX_LOSSLESS = 2**20  # bytes of pixels: all that the embedded world draws; a photograph of 512 x 512 takes half a megabyte as PNG
PLAYER = (Path(__file__).parent / "player.html").read_text()
FLAG = '<span class="flag">collapsed most</span>'


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of one column, already worded: "0.267", "−0.14", "0.24 to 0.29"."""

    label: str
    value: str
    delta: str = ""  # against base
    sure: bool = False  # the difference has an interval, and that excludes 0
    note: str = ""  # its interval, or why there is none


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How one column's images divide over the values of one attribute; shares add up to 1."""

    kind: str
    label: str  # the column in few letters
    shares: Mapping[str, float]
    entropy: float  # normalised, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One grid with its scores; ``kind`` chooses the colour: base, tuned, aig or extra-1 to extra-3."""

    kind: str
    title: str
    about: str
    metrics: Sequence[Metric]
    picture: str  # data URL, "" before the first preview
    alt: str


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Diversity over the steps shown so far."""

    steps: int = 1
    shares: Sequence[float] = ()  # of the tuned model in the AIG column, at each step
    points: tuple[tuple[int, tuple[float | None, ...]], ...] = ()  # (step, diversity of every column), in order


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
    trace: Trace = Trace()
    link: str = ""  # the settings of this run, as ``aig.links`` writes them
    recorded: bool = False


def stage(view: Stage) -> str:
    """The whole stage; its structure does not depend on the state, so updates leave the layout in place."""
    quiet = "" if view.state == "done" else ' class="quiet"'
    live = "off" if view.state == "running" or view.recorded else "polite"  # a new sentence every second is too much to listen to
    percent = f"{100 * view.share:.0f}"
    notice = f'<p class="notice" role="status">{escape(view.notice)}</p>' if view.notice else ""
    columns = "".join(_column(column, view) for column in view.columns)
    return (
        f'<div class="stage" data-state="{escape(view.state)}" data-link="{escape(view.link)}" '
        f'data-kind="{"recorded" if view.recorded else "live"}">'
        f'<div class="sentence" aria-live="{live}"><p class="asked">{view.asked}</p>'
        f"<h2{quiet}>{escape(view.sentence)}</h2></div>{_trace(view)}"
        '<div class="progress"><div class="rail" role="progressbar" aria-label="Denoising" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
        f"<span>{escape(view.status)}</span></div>{PLAYER}"
        f'<div class="notices">{notice}</div>'
        f'<div class="arms" style="--count:{len(view.columns)}">{columns}</div>{_attributes(view)}</div>'
    )


def asked(prompt: str, *, seeds: str) -> str:
    """The line above the sentence: what was asked for."""
    words = f"<q>{escape(prompt)}</q>" if prompt.strip() else "<q>anything</q> (no prompt)"
    return f"{words} · {escape(seeds)}, the same in every column"


# --- the trace: diversity over denoising ---

_WIDE, _TALL, _INSET = 300, 84, 22


def _trace(view: Stage) -> str:
    """A small SVG of every column's diversity over the steps, the share g faint behind; its size is always the same."""
    trace, titles = view.trace, [column.title for column in view.columns]
    values = [value for _, point in trace.points for value in point if value is not None]
    top = max(1.0, math.ceil(2 * max(values, default=0)) / 2)

    def at(progress: float, share: float) -> str:
        return f"{_INSET + progress * (_WIDE - _INSET - 6):.1f},{_TALL - 4 - share * (_TALL - 10):.1f}"

    last = max(1, trace.steps - 1)
    shares = " ".join(at(i / last, min(1.0, share)) for i, share in enumerate(trace.shares))
    lines = ""
    for c, column in enumerate(view.columns):
        known = [(step, point[c]) for step, point in trace.points if c < len(point) and point[c] is not None]
        places = [at((step - 1) / last, value / top) for step, value in known]
        if places:
            x, y = places[-1].split(",")
            lines += (
                f'<polyline class="{escape(column.kind)}" points="{" ".join(places)}"/>'
                f'<circle class="{escape(column.kind)}" cx="{x}" cy="{y}" r="3"/>'
            )
    left, right, low, high = _INSET, _WIDE - 6, _TALL - 4, 6
    axes = (
        f'<path class="axes" d="M{left},{high}V{low}H{right}"/><text x="{left - 5}" y="{high + 7}">{top:g}</text>'
        f'<text x="{left - 5}" y="{low}">0</text>'
    )
    keys = "".join(
        f'<span class="{escape(column.kind)}"><svg viewBox="0 0 22 6" aria-hidden="true"><polyline points="0,3 22,3"/></svg>'
        f"{escape(column.title)}</span>"
        for column in view.columns
    )
    spoken = "no steps yet"
    if trace.points:
        step, point = trace.points[-1]
        each = ", ".join(
            f"{title} {'unknown' if value is None else f'{value:.2f}'}" for title, value in zip(titles, point, strict=False)
        )
        spoken = f"at step {step} of {trace.steps}: {each}"
    return (
        f'<figure class="trace"><svg viewBox="0 0 {_WIDE} {_TALL}" role="img" aria-label="Diversity over denoising, '
        f'{escape(spoken)}">{axes}<polyline class="g" points="{shares}"/>{lines}</svg>'
        f'<figcaption><b>Diversity, noise to image</b>{keys}<span class="g"><svg viewBox="0 0 22 6" aria-hidden="true">'
        '<polyline points="0,3 22,3"/></svg>share g</span></figcaption></figure>'
    )


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
    telling = view.state == "done" and view.images >= ENOUGH
    flagged = most if telling and lost.get(most, 0) > 0.1 else None
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
    return (
        f'<div class="bar {escape(bar.kind)}"><b>{escape(bar.label)}</b>'
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
