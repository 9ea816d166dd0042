"""Pictures of a run that leave the app: the grids side by side, labelled, with the settings inside the file."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngImageFile, PngInfo

from aig.measures.scores import ColumnScores
from aig.runs import links
from aig.runs.comparison import Update
from aig.runs.facts import LABELS

KEY = "aig"  # the PNG text chunk that holds the settings as a link does
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a8528a", "#a87400", "#15181d")  # of the columns, Okabe-Ito, as on the page
CELL, GAP, MARGIN = 128, 4, 24
STEP_MS, REST_MS = 250, 3_000  # how long a moving picture shows a step, and its end


def side(images: int) -> int:
    """Cells across of the most nearly square grid."""
    return math.ceil(math.sqrt(images))


def grids(images: np.ndarray, names: Sequence[str], captions: Sequence[str], link: str) -> bytes:
    """(columns, N, H, W, 3) uint8 as one PNG: a titled, captioned grid a column; ``link`` goes into its text chunk."""
    info = PngInfo()
    info.add_text(KEY, link)
    buffer = io.BytesIO()
    sheet(images, names, captions).save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def png(update: Update) -> bytes:
    """The pictures of a run so far as one labelled PNG, its settings inside. ValueError where there are none."""
    if update.scores is None or update.images is None:
        raise ValueError("The run has no pictures yet.")
    columns = update.scores.columns
    return grids(update.images, [c.name for c in columns], [caption(c) for c in columns], links.encode(update.plan.request))


def moving(updates: Sequence[Update]) -> bytes:
    """The steps of a run as one animated WebP, which rests at the end; the captions are the last step's."""
    columns = updates[-1].scores.columns if updates and updates[-1].scores else ()
    names, captions = [c.name for c in columns], [caption(c) for c in columns]
    frames = [sheet(update.images, names, captions) for update in updates if update.images is not None]
    buffer, times = io.BytesIO(), [STEP_MS] * (len(frames) - 1) + [REST_MS]
    frames[0].save(buffer, "webp", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80, method=6)
    return buffer.getvalue()


def caption(column: ColumnScores) -> str:
    """The scores of a column in one or two lines."""
    named = {LABELS.get(name, name).lower(): interval.value for name, interval in column.rewards.items()}
    rewards = ", ".join(f"{name} {value:+.2f}" for name, value in named.items())
    return f"{rewards}\ndiversity {column.diversity.value:.3f}" if column.diversity else rewards


def sheet(images: np.ndarray, names: Sequence[str], captions: Sequence[str]) -> Image.Image:
    """A titled, captioned grid a column."""
    columns, n = images.shape[:2]
    across = side(n)
    down = -(-n // across)
    width, height = across * (CELL + GAP) - GAP, down * (CELL + GAP) - GAP
    top, bottom = 52, 34
    drawn = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, top + height + bottom + MARGIN), "white")
    pen, title, small = ImageDraw.Draw(drawn), ImageFont.load_default(22), ImageFont.load_default(14)
    for c, (name, caption) in enumerate(zip(names, captions, strict=True)):
        left = MARGIN + c * (width + MARGIN)
        pen.text((left, 16), name, fill=COLOURS[c % len(COLOURS)], font=title)
        for k in range(n):
            cell = Image.fromarray(images[c, k])
            whole = CELL % cell.width == 0
            cell = cell.resize((CELL, CELL), Image.Resampling.NEAREST if whole and cell.width < 32 else Image.Resampling.LANCZOS)
            drawn.paste(cell, (left + k % across * (CELL + GAP), top + k // across * (CELL + GAP)))
        for i, line in enumerate(caption.splitlines()):
            pen.text((left, top + height + 8 + 18 * i), line.replace("−", "-"), fill="#444444", font=small)
    return drawn


def settings_of(png: bytes) -> str:
    """The link inside a picture made by ``grids``; ValueError when there are none."""
    try:
        picture = Image.open(io.BytesIO(png))
        return (picture.text if isinstance(picture, PngImageFile) else {})[KEY]
    except (OSError, KeyError) as problem:
        raise ValueError("This picture holds no settings of a run.") from problem


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
