"""Pictures as the page gets them: the images of a column as one mosaic, that mosaic as a data URL, and back."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

MAX_CELL = 512  # pixels; two columns of cells fill a projector
MAX_LOSSLESS = 2**20  # bytes of pixels: all that the embedded world draws; a photograph of 512 x 512 takes half a megabyte as PNG


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
