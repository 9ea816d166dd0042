"""The recorded runs: complete, small, of the shipped model, and refused with their remedy otherwise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aig.portraits import serving
from aig.runs import replay
from aig.runs.request import Request
from tests.serving import TINY, tiny_model


@pytest.fixture(scope="module")
def recording(make_pipe, lora_file):
    """A recorded run of the tiny model."""
    return replay.record(lambda: tiny_model(make_pipe(), lora_file), Request(prompt="a", images=5, steps=6))


@pytest.fixture(scope="module")
def shipped():
    return serving.load().facts


RECORDED = [prompt for prompt in replay.EXAMPLES if replay.place(prompt).exists()]


@pytest.mark.parametrize("prompt", RECORDED)
def test_a_shipped_recording_fits_the_shipped_model_and_is_small(shipped, prompt):
    updates = replay.load(replay.place(prompt), shipped)  # if this fails: python -m aig replay
    assert updates[-1].state == "done" and updates[0].plan.request == replay.opening(shipped, prompt)
    assert replay.place(prompt).stat().st_size < 1_500_000


def test_what_the_page_opens_on_is_recorded_and_nothing_but_examples():
    assert RECORDED[0] == replay.EXAMPLES[0]
    assert set(replay.FOLDER.iterdir()) == {replay.place(prompt) for prompt in RECORDED}


def test_every_step_is_recorded_and_read_again(recording, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(replay.dump(recording, "a model"))
    again = replay.load(path, TINY, "a model")
    assert [update.step for update in again] == [1, 2, 3, 4, 5, 6]
    assert [update.state for update in again] == ["running"] * 5 + ["done"]
    for one, other in zip(recording, again, strict=True):
        assert (one.plan, one.rows) == (other.plan, other.rows)
        assert one.scores.headline == other.scores.headline and one.images.shape == other.images.shape
        for a, b in zip(one.scores.columns, other.scores.columns, strict=True):
            assert a.diversity.value == pytest.approx(b.diversity.value, abs=1e-4) and a.deltas.keys() == b.deltas.keys()
        assert np.abs(one.images.astype(int) - other.images).mean() < 12
    assert np.array_equal(recording[-1].images, again[-1].images)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content | {"model": "other"}, "another model"),
        (lambda content: content | {"updates": content["updates"][1:]}, "lacks steps"),
        (lambda content: content | {"updates": []}, "lacks steps"),
        (lambda content: {"model": "a model"}, "broken"),
        (lambda content: content | {"updates": [content["updates"][0] | {"pictures": ["AAAA"] * 3}]}, "broken"),
        (lambda content: content | {"updates": 7}, "broken"),
        (lambda content: [], "broken"),
    ],
)
def test_a_stale_or_broken_recording_is_refused_with_the_remedy(recording, tmp_path, change, reason):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(change(json.loads(replay.dump(recording, "a model")))))
    with pytest.raises(ValueError, match=f"{reason}.*python -m aig replay"):
        replay.load(path, TINY, "a model")


def test_a_missing_recording_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no recorded run.*python -m aig replay"):
        replay.load(tmp_path / "none.json", TINY, "a model")
    (tmp_path / "text.json").write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match="broken.*python -m aig replay"):
        replay.load(tmp_path / "text.json", TINY, "a model")
