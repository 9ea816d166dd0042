"""Pictures on their way to the page: they hold exactly the pixels they were given, or nearly so where they are sent small."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from aig.ui import pictures


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1, (1, 1)), (2, (2, 1)), (4, (2, 2)), (5, (3, 2)), (7, (3, 3)), (9, (3, 3)), (12, (4, 3)), (16, (4, 4))],
)
def test_shape_is_the_most_nearly_square_grid(images, expected):
    assert pictures.shape(images) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 9, 16])
def test_mosaic_puts_every_image_in_its_cell_in_reading_order(n):
    images = np.random.default_rng(n).integers(0, 256, (n, 6, 4, 3), dtype=np.uint8)
    picture = pictures.mosaic(images)
    across, down = pictures.shape(n)
    assert picture.shape == (down * 6, across * 4, 3)
    for k in range(n):
        row, column = divmod(k, across)
        assert np.array_equal(picture[row * 6 : row * 6 + 6, column * 4 : column * 4 + 4], images[k])


def test_a_final_picture_is_lossless_and_a_preview_is_close():
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(90)), axis=-1)

    def decode(url: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))

    assert np.array_equal(decode(pictures.data_url(picture, final=True)), picture)
    assert np.abs(decode(pictures.data_url(picture, final=False)).astype(int) - picture).mean() < 8


@pytest.mark.parametrize(("side", "shown", "kind"), [(64, 64, "png"), (512, 512, "webp"), (1024, 512, "webp")])
def test_large_images_are_reduced_and_sent_small(side, shown, kind):
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    images = np.broadcast_to(ramp[:, None, None], (4, side, side, 3)).copy()
    url = pictures.data_url(pictures.mosaic(pictures.reduced(images)), final=True)
    assert url.startswith(f"data:image/{kind}") and len(url) < 200_000
    cells = pictures.cells(url, 4)
    assert cells.shape == (4, shown, shown, 3)
    wanted = np.linspace(0, 255, shown)[:, None, None]
    assert np.abs(cells[2] - wanted).max() < 6
