"""Pictures of a run that leave the app."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageChops

from aig.portraits import serving
from aig.runs import export, links, replay


@pytest.fixture(scope="module")
def updates():
    """The recorded run of the first example."""
    path = replay.place(replay.EXAMPLES[0])
    return replay.load(path, serving.load().facts)


def test_a_picture_of_a_run_holds_its_settings_and_its_own_pixels(updates):
    png = export.png(updates[-1])
    assert links.decode(export.settings_of(png)) == updates[-1].plan.request
    first = Image.open(io.BytesIO(png)).crop((export.MARGIN, 52, export.MARGIN + export.CELL, 52 + export.CELL))
    again = Image.fromarray(updates[-1].images[0, 0]).resize((export.CELL, export.CELL), Image.Resampling.LANCZOS)
    assert ImageChops.difference(first.convert("RGB"), again).getbbox() is None
    with pytest.raises(ValueError, match="no pictures yet"):
        export.png(replace(updates[0], images=None))


def test_the_moving_picture_shows_every_step_and_rests_at_the_end(updates):
    moving = Image.open(io.BytesIO(export.moving(updates)))
    assert moving.n_frames == len(updates)
    lengths = []
    for k in range(moving.n_frames):
        moving.seek(k)
        moving.load()
        lengths.append(moving.info["duration"])
    assert lengths[:-1] == [export.STEP_MS] * (len(updates) - 1) and lengths[-1] == export.REST_MS


def test_a_minus_is_drawn_as_one_and_not_as_a_box():
    images = np.zeros((1, 1, 8, 8, 3), np.uint8)
    assert ImageChops.difference(export.sheet(images, ["x"], ["−1"]), export.sheet(images, ["x"], ["-1"])).getbbox() is None
