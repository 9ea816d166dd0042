"""Wording: what the stage says at each moment of a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from aig.measures.intervals import Interval
from aig.measures.scores import score
from aig.runs import export, links
from aig.runs.comparison import Update
from aig.runs.plan import Plan
from aig.runs.request import Request
from aig.ui import pictures
from aig.ui.compare import views
from aig.ui.parts.stage import Trace
from tests.measures.test_scores import COLUMNS
from tests.serving import TINY

REQUEST = Request(prompt="a person", images=4, steps=8, kl=0.5)


def an_update(state: str, images: int = 4, spread: tuple[float, ...] = (1.0, 0.2, 0.9)) -> Update:
    """Columns whose features spread as told around one direction, with rewards 0, 2 and 1.8."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(images, 6, generator=rng)
    features = torch.stack([torch.ones(6) + s * noise for s in spread])
    rewards = torch.tensor([0.0, 2.0, 1.8])[:, None] + 0.01 * noise[:, 0]
    classes = torch.softmax(9 * torch.randn(3, images, 3, generator=rng), dim=-1)
    scores = score(
        COLUMNS, features, {"preference": rewards, "held-out": -rewards}, {"hue": classes}, {"hue": ("red", "green", "blue")},
        proxy="preference",
    )  # fmt: skip
    pictures = np.random.default_rng(0).integers(0, 256, (3, images, 4, 4, 3), dtype=np.uint8)
    return Update(
        state=state,
        plan=Plan.of(Request(prompt="a person", images=images, steps=8, kl=0.5, schedule="base"), TINY),
        step=8 if state == "done" else 2,
        images=pictures,
        scores=scores,
        rows=1234,
        seconds=3.21,
        left=0.0 if state == "done" else 6.4,
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (-1.234, "−1.23"), (-0.001, "0.00"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)
def test_number(value, text):
    assert views.number(value) == text


def test_span_of_a_known_and_of_an_unknown_interval():
    assert views.span(Interval(value=0.5, low=-0.25, high=1, n=4)) == "−0.25 to 1.00"
    inf = float("inf")
    assert views.span(Interval(value=0.5, low=-inf, high=inf, n=2)) == "needs 3 images"


def test_before_the_first_run_everything_is_blank():
    stage = views.idle(Plan.of(REQUEST, TINY))
    assert stage.state == "idle" and stage.sentence == views.INVITATION and not stage.attributes
    assert {m.value for column in stage.columns for m in column.metrics} == {"–"}
    assert "seeds 7 to 10" in stage.asked


def test_waiting_says_the_place():
    assert "place 3" in views.shown(Update(state="waiting", plan=Plan.of(REQUEST, TINY), place=3)).status


def test_a_running_stage_shows_steps_and_seconds_left():
    stage = views.shown(an_update("running"))
    assert stage.status == "Step 2 of 8 · 6 s left" and stage.share == 0.25
    assert all(column.picture.startswith("data:image/webp") for column in stage.columns)


def test_a_finished_stage_shows_the_headline_and_the_scores():
    update = an_update("done")
    stage = views.shown(update)
    assert stage.sentence == update.scores.headline and stage.share == 1
    assert stage.status == "8 steps · 3.2 s · 1,234 model evaluations"
    base, tuned, aig = stage.columns
    assert [m.label for m in base.metrics] == ["Reward", "Held-out reward", "Diversity", "Vendi score"]
    assert {m.delta for m in base.metrics} == {""}
    assert tuned.metrics[0].delta == "+2.00" and tuned.metrics[0].sure and tuned.metrics[1].delta == "−2.00"
    assert tuned.metrics[2].delta.startswith("−") and "to" in tuned.metrics[2].note
    assert aig.metrics[3].delta and not aig.metrics[3].sure  # it has no interval
    assert aig.metrics[3].note == "of 4" and aig.picture.startswith("data:image/png")
    assert [bar.kind for bar in stage.attributes["hue"]] == ["base", "tuned", "aig"]
    assert all(sum(bar.shares.values()) == pytest.approx(1) for bar in stage.attributes["hue"])


def test_added_columns_are_blank_until_they_are_there():
    asked = Request(prompt="a person", images=4, steps=8, columns=("code:2", "lora:0.5"))
    update = dataclasses.replace(an_update("running"), plan=Plan.of(asked, TINY), step=9)
    stage = views.shown(update)
    assert [c.kind for c in stage.columns] == ["base", "tuned", "aig", "extra-1", "extra-2"]
    assert [c.title for c in stage.columns[3:]] == ["LoRA scale 0.5", "CoDe 2"]
    assert all(c.picture == "" and {m.value for m in c.metrics} == {"–"} for c in stage.columns[3:])
    assert stage.status.startswith("Step 9 of 16") and len(stage.attributes["hue"]) == 3


def test_one_image_has_no_diversity_and_says_what_it_needs():
    stage = views.shown(an_update("done", images=1))
    assert [m.note for m in stage.columns[0].metrics[2:]] == ["needs 2 images"] * 2
    assert not stage.attributes and "seed 7," in stage.asked


def test_a_stopped_stage_keeps_its_pictures():
    running = views.shown(an_update("running"), notice="a note")
    stopped = views.ended(running, "Stopped")
    assert stopped.columns == running.columns and stopped.notice == "a note" and stopped.state == "stopped"


def test_the_trace_holds_every_shown_step_once_and_begins_anew():
    first, last = an_update("running"), an_update("done")
    trace = views.longer(views.longer(views.longer(Trace(), first), first), last)
    assert [step for step, _ in trace.points] == [2, 8] and trace.steps == 8
    assert trace.points[1][1] == tuple(column.diversity.value for column in last.scores.columns)
    assert views.longer(trace, Update(state="running", plan=Plan.of(REQUEST, TINY))).points == ()
    assert views.longer(Trace(), an_update("done", images=1)).points == ((8, (None, None, None)),)


def test_a_picture_of_a_stage_holds_its_pixels_and_its_settings():
    update = an_update("done")
    stage = views.shown(update)
    assert links.decode(export.settings_of(views.picture(stage))) == update.plan.request
    for column, images in zip(stage.columns, update.images, strict=True):
        assert np.array_equal(pictures.cells(column.picture, 4), images)


def test_a_recorded_run_is_marked_and_has_a_growing_trace():
    stages = views.replayed([an_update("running"), an_update("done")])
    assert all(stage.recorded for stage in stages) and [len(stage.trace.points) for stage in stages] == [1, 2]


def test_unknown_words_are_named_up_to_a_bound():
    assert views.unknown(()) == ""
    assert views.unknown(("zebra",)).endswith("this word and ignores it: “zebra”.")
    assert views.unknown(tuple("abcdefghijkl")).count("“") == 8
