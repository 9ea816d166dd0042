"""Pure functions from schedules, frames and scores to HTML and SVG. Every piece of outside text passes through ``escape``."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from aig.schedules import Schedule, weights

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
    return cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def data_url(picture: np.ndarray, *, final: bool) -> str:
    """A picture as a data URL: lossless PNG when final, small WebP for the previews on the way."""
    buffer = io.BytesIO()
    if final:
        Image.fromarray(picture).save(buffer, "png")
    else:
        Image.fromarray(picture).save(buffer, "webp", quality=82, method=0)
    return f"data:image/{'png' if final else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
