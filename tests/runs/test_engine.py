"""The worker: what it refuses before the queue, how it stops, and that a failure stays with its requester."""

from __future__ import annotations

import dataclasses
import math
import random
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from aig.runs.comparison import Update
from aig.runs.engine import Busy, Engine, RunFailed
from aig.runs.jobs import PAUSE
from aig.runs.models import Offer
from aig.runs.plan import Plan
from aig.runs.request import Request
from tests.serving import TINY, finder, plain_model, slowed, tiny_model

SMALL = Request(prompt="a b", images=2, steps=4)


@pytest.fixture
def model(pipe, lora_file):
    return tiny_model(pipe, lora_file)


@pytest.fixture
def find(make_pipe, lora_file):
    """What is on offer beside the first model: "plain", and "gone", which cannot be loaded."""

    def load(tell):
        tell("Reading 1 of 2")
        return plain_model(make_pipe(), lora_file)

    def gone(tell):
        raise ValueError("The repository 'nobody/gone' is not on the Hub.")

    facts = plain_model(make_pipe(), lora_file).facts
    return finder([Offer(facts=facts, load=load), Offer(facts=dataclasses.replace(facts, name="gone"), load=gone)])


@pytest.fixture
def engine(model, find):
    engine = Engine(lambda: model, find)
    yield engine
    engine.close()


def last(stream):
    *_, update = stream
    return update


def test_a_run_ends_with_images_and_scores(engine):
    update = last(engine.stream(SMALL))
    assert update.state == "done" and update.step == 4 and update.left == 0
    assert update.images.shape == (3, 2, 16, 16, 3) and update.images.dtype == np.uint8
    assert [c.name for c in update.scores.columns] == ["Base", "Reward-tuned", "AIG"]
    assert update.plan.aig.shares == (0, 1 / 16, 4 / 16, 9 / 16)
    assert (update.images[0] != update.images[1]).any()


def test_the_same_request_gives_the_same_bytes(engine):
    runs = [last(engine.stream(SMALL)).images.tobytes() for _ in range(3)]
    assert len(set(runs)) == 1


@pytest.mark.parametrize(
    "change",
    [{"prompt": "c d"}, {"seed": 8}, {"guidance": 2.0}, {"schedule": "linear"}, {"lora_scale": 0.5}, {"kl": 2.0}, {"tuning": "vivid"}, {"closed": True}, {"steps": 5}, {"images": 3}, {"columns": ("lora:0.5",)}, {"model": "plain", "tuning": "spo"}],
)  # fmt: skip
def test_every_setting_changes_the_pixels(engine, change):
    changed = dataclasses.replace(SMALL, **change)
    assert last(engine.stream(changed)).images.tobytes() != last(engine.stream(SMALL)).images.tobytes()


BAD = {
    "prompt": [None, 3, True, ["a"], {"a": 1}, "x" * 401, "x" * 1_000_000, "a\0b", "\ud800", "word " * 60],
    "seed": [None, True, 1.5, -1, 10**9 * 3, math.nan, math.inf, "7", [7]],
    "images": [None, True, 0, 17, 10**9, 1.5, math.nan, "4", [4], {}],
    "steps": [None, False, 0, 101, 10**9, 2.5, -math.inf, "16"],
    "guidance": [None, True, 10**400, -(10**400), -0.1, 20.1, math.nan, math.inf, "4", [4.0], 1e9],
    "schedule": [None, 2, True, "", "power_x", "power_nan", "power_-1", "step_2", "pow", "constant_9", "points:0,0", "p" * 10**6, ["linear"]],
    "tuning": [None, 1, "", "held-out", "beauty", ["vivid"], "\0"],
    "lora_scale": [None, True, -0.01, 1.51, math.nan, math.inf, "1", 1e9],
    "kl": [None, True, 10**400, 0.25, -1, math.nan, math.inf, "0", 1e9],
    "closed": [None, 0, 1, "true", math.nan],
    "model": [None, 3, True, "sdxxl", "../etc", "https://example.org/a", "\0", "x" * 10**6, ["other"], {"a": 1}],
    "columns": [None, 3, True, "lora:1", {"a": 1}, [None], [3], [[]], [["lora:1"]], ["lora:9"], ["lora:nan"], ["code:1"], ["<b>"], ["a\0"], ["\ud800"],
                ["cads:1e9"], ["kl:0.25"], ["lora:1"] * 2, ["lora:0.1"] * 10**5, ["x" * 10**6], ["aig:points:" + "0,0;" * 400], ("step:0.5:x",)],
}  # fmt: skip


def test_five_thousand_hostile_requests_never_reach_the_model(engine, model):
    calls = slowed(model.pipe, 0.0)
    rng = random.Random(0)
    for _ in range(5_000):
        names = rng.sample(list(BAD), rng.randint(1, 4))
        request = Request(**{name: rng.choice(BAD[name]) for name in names})
        with pytest.raises(ValueError) as refusal:
            engine.stream(request)
        assert "\n" not in str(refusal.value) and 10 < len(str(refusal.value)) < 400
    assert not calls


def test_too_much_work_is_refused_before_the_queue(engine):
    with pytest.raises(ValueError, match="model evaluations"):
        engine.stream(Request(images=16, steps=100))


def test_every_field_is_among_those_that_change_the_pixels():
    changes = test_every_setting_changes_the_pixels.pytestmark[0].args[1]
    assert {name for change in changes for name in change} == {field.name for field in dataclasses.fields(Request)}


@pytest.mark.parametrize("columns", [("lora:0.5", "cads:0.1", "scheduled:power_2"), ("step:0.6:unguided", "code:2", "code:3")])
def test_a_run_with_more_columns_stops_fails_and_leaves_nothing_behind(engine, model, columns):
    reference, more = last(engine.stream(SMALL)).images, dataclasses.replace(SMALL, columns=columns)
    calls = slowed(model.pipe, 0.02)
    rng = random.Random(2)
    for _ in range(6):
        stream = engine.stream(dataclasses.replace(more, steps=8))
        next(stream)
        time.sleep(rng.uniform(0, 0.5))
        stream.close()
        before = len(calls)
        time.sleep(0.4)
        assert len(calls) - before <= 7  # the step in flight: the base and up to six tuned models
    hook = model.pipe.vae.decoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(RunFailed):
        last(engine.stream(more))
    hook.remove()
    assert (last(engine.stream(SMALL)).images == reference).all()


def test_previews_of_code_come_after_the_others_and_blank_nothing(engine):
    counts, steps = [], []
    for update in engine.stream(dataclasses.replace(SMALL, columns=("code:2", "lora:0.5"))):
        if update.images is not None:
            counts.append(len(update.images))
            steps.append(update.step)
            assert len(update.scores.columns) == len(update.images) and update.plan.steps == 8
    assert counts == sorted(counts) and counts[-1] == 5 and steps == sorted(steps)


def test_closing_a_stream_ends_the_run_within_a_step(engine, model):
    reference = last(engine.stream(SMALL)).images
    calls = slowed(model.pipe, 0.05)
    rng = random.Random(1)
    for _ in range(10):
        stream = engine.stream(Request(images=2, steps=50))
        next(stream)
        time.sleep(rng.uniform(0, 0.3))
        stream.close()
        before = len(calls)
        assert list(stream) == []
        time.sleep(0.12)
        assert len(calls) - before <= 2  # the step in flight: one evaluation, or the two of a mixed one
    assert (last(engine.stream(SMALL)).images == reference).all()


def test_a_full_queue_says_so_and_places_are_told(model):
    engine = Engine(lambda: model, max_waiting=2)
    slowed(model.pipe, 0.05)
    try:
        running = engine.stream(dataclasses.replace(SMALL, steps=50))
        while next(running).state != "running":
            pass
        first, second = engine.stream(SMALL), engine.stream(SMALL)
        assert next(second).place == 2
        with pytest.raises(Busy, match="2 runs are waiting"):
            engine.stream(SMALL)
        first.close()
        assert next(second).place == 1
        running.close()
        assert last(second).state == "done"
    finally:
        engine.close()


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("full"), RuntimeError("broken"), FloatingPointError("NaN")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_is_told_to_its_requester_and_the_next_run_works(engine, model, failure):
    reference = last(engine.stream(SMALL)).images

    def fail(module, inputs):
        raise failure

    for part in (model.pipe.text_encoder, model.pipe.unet.conv_in, model.pipe.vae.decoder):
        hook = part.register_forward_pre_hook(fail)
        with pytest.raises(RunFailed):
            last(engine.stream(SMALL))
        hook.remove()
        assert (last(engine.stream(SMALL)).images == reference).all()


def test_steps_that_the_scheduler_cannot_make_are_refused_before_sampling(engine, model):
    stock, asked = model.pipe.scheduler, []
    model.pipe.scheduler = DDIMScheduler.from_config(stock.config, timestep_spacing="trailing", use_karras_sigmas=False)
    hook = model.pipe.unet.conv_in.register_forward_pre_hook(lambda *_: asked.append(1))
    try:
        with pytest.raises(RunFailed, match="DDIMScheduler with trailing spacing makes 62 steps of 61, .*: choose 60 steps"):
            last(engine.stream(dataclasses.replace(SMALL, steps=61)))
        assert not asked
        assert last(engine.stream(dataclasses.replace(SMALL, steps=60))).state == "done"
    finally:
        hook.remove()
        model.pipe.scheduler = stock


def test_a_model_that_does_not_load_says_why():
    def broken():
        raise ValueError("The asset portraits/unet is missing; restore it from the repository.")

    with pytest.raises(ValueError, match="missing"):
        Engine(broken).facts()


def test_a_model_is_loaded_when_a_run_asks_for_it_and_the_one_before_is_freed(make_pipe, lora_file, find):
    held = []

    def first():
        model = tiny_model(make_pipe(), lora_file)
        held.append(weakref.ref(model.pipe.unet))
        return model

    engine = Engine(first, find)
    try:
        reference = last(engine.stream(SMALL)).images
        assert engine.facts().name == "tiny" and engine.facts("plain").name == "plain"
        states = []
        for update in engine.stream(dataclasses.replace(SMALL, model="plain", tuning="dpo")):
            states.append(update.state)
            if update.state == "running":
                assert held[0]() is None
                assert update.plan.judges == ("pickscore", "imagereward")
        assert states[-1] == "done" and (update.images != reference).any()
        again = last(engine.stream(dataclasses.replace(SMALL, model="tiny")))
        assert len(held) == 2 and (again.images == reference).all()
    finally:
        engine.close()


def test_a_model_that_cannot_be_loaded_is_told_and_the_next_run_works(engine):
    reference = last(engine.stream(SMALL)).images
    for _ in range(2):
        with pytest.raises(RunFailed, match="'nobody/gone' is not on the Hub"):
            last(engine.stream(dataclasses.replace(SMALL, model="gone", tuning="spo")))
        assert (last(engine.stream(SMALL)).images == reference).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_download_holds_nobody_but_those_who_asked_for_it(engine, find, monkeypatch):
    gate, calls, here = threading.Event(), [], []

    def fetch(tuning, tell):
        calls.append(tuning)
        while not gate.wait(0.02):
            tell("Downloading 1 of 2")
        if tuning == "spo":
            raise OSError(28, "No space left on device", "/secret/place")
        if tuning == "ipo":
            raise RuntimeError("a fault")
        here.append(tuning)

    facts = dataclasses.replace(find("plain").facts, tunings={"spo": (0.0,), "dpo": (0.0,), "ipo": (0.0,)})
    away = dataclasses.replace(find("plain"), facts=facts, fetch=fetch, missing=lambda tuning: tuning not in here)
    monkeypatch.setattr(engine, "_find", lambda name: away)
    wanted = dataclasses.replace(SMALL, model="plain", tuning="dpo")
    first, stopped = engine.stream(wanted), engine.stream(wanted)
    full, out = engine.stream(dataclasses.replace(wanted, tuning="spo")), engine.stream(dataclasses.replace(wanted, tuning="ipo"))
    assert next(first).state == "loading"
    assert last(engine.stream(SMALL)).state == "done" and calls == ["dpo"]  # meanwhile, and one download at a time
    stopped.close()
    gate.set()
    assert last(first).state == "done" and here == ["dpo"]
    with pytest.raises(RunFailed, match=r"could not be loaded: No space left on device\.$"):
        last(full)
    with pytest.raises(RunFailed, match="download failed by a fault"):
        last(out)
    assert calls == ["dpo", "spo", "ipo"]  # nothing was fetched for the one who left
    assert last(engine.stream(wanted)).state == "done" and len(calls) == 3  # what is here is not fetched again


def test_downloads_count_as_waiting_and_end_with_the_engine(model, find):
    def endless(tuning, tell):
        while not time.sleep(0.02):
            tell("Downloading")

    away = dataclasses.replace(find("plain"), missing=lambda tuning: True, fetch=endless)
    engine = Engine(lambda: model, lambda name: away, max_waiting=2)
    wanted = dataclasses.replace(SMALL, model="plain", tuning="dpo")
    assert next(engine.stream(wanted)).state == "loading"
    streams = [engine.stream(wanted) for _ in range(2)]
    with pytest.raises(Busy, match="2 runs are waiting"):
        engine.stream(SMALL)
    streams[0].close()
    assert last(engine.stream(SMALL)).state == "done"  # in the place of the one who left
    engine.close()
    assert not any(thread.is_alive() for thread in engine._threads) and not list(streams[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_whose_release_fails_is_not_used_again(engine, find, monkeypatch):
    reference = last(engine.stream(SMALL)).images
    broken = dataclasses.replace(find("plain"), load=lambda tell: dataclasses.replace(find_load(tell), release=lambda: 1 / 0))
    find_load = find("plain").load
    monkeypatch.setattr(engine, "_find", lambda name: broken)
    plain = dataclasses.replace(SMALL, model="plain", tuning="spo")
    assert last(engine.stream(plain)).state == "done"
    with pytest.raises(RunFailed):
        last(engine.stream(SMALL))
    assert (last(engine.stream(SMALL)).images == reference).all()


def test_a_slow_reader_does_not_hold_the_model(engine):
    slow = engine.stream(SMALL)
    assert last(engine.stream(SMALL)).state == "done"  # though nobody has read the first one
    assert last(slow).state == "done"
    assert threading.active_count() < 50


# --- jobs ---


@dataclasses.dataclass
class Units:
    """A long job that notes when it works."""

    name: str
    notes: list
    units: int = 3
    model: str = ""
    tuning: str = "preference"

    def update(self, state, **found):
        return Update(state=state, plan=Plan.of(SMALL, TINY), **found)

    def run(self, model):
        for i in range(self.units):
            self.notes.append(f"{self.name}{i}")
            yield self.update("running")
            time.sleep(0.05)
            yield PAUSE
        yield self.update("done")


def test_a_long_job_gives_way_between_its_units_and_goes_on(engine):
    notes = []
    stream = engine.submit(Units("a", notes), "one")
    assert next(stream).state in ("waiting", "running")
    while not notes:
        time.sleep(0.01)
    others = [engine.submit(Units(name, notes, units=1), name) for name in "bc"]
    for other in others:
        assert last(other).state == "done"
    assert last(stream).state == "done" and notes == ["a0", "b0", "c0", "a1", "a2"]


def test_turns_are_shared_between_users_and_not_between_jobs(engine):
    notes = []
    first = engine.submit(Units("a", notes, units=2), "busy")
    while not notes:
        time.sleep(0.01)
    streams = [engine.submit(Units(name, notes, units=1), user) for name, user in (("b", "busy"), ("c", "busy"), ("d", "other"))]
    for stream in (*streams, first):
        assert last(stream).state == "done"
    assert notes == ["a0", "d0", "b0", "c0", "a1"]


def test_a_long_job_begins_again_when_its_model_was_freed_meanwhile(engine):
    notes = []
    stream = engine.submit(Units("a", notes, units=2))
    while not notes:
        time.sleep(0.01)
    assert last(engine.submit(Units("b", notes, units=1, model="plain", tuning="dpo"))).state == "done"
    assert last(stream).state == "done" and notes == ["a0", "b0", "a0", "a1"]


def test_a_paused_job_can_be_stopped(engine):
    notes = []
    stream, reference = engine.submit(Units("a", notes)), last(engine.stream(SMALL)).images
    stream.close()
    assert (last(engine.stream(SMALL)).images == reference).all() and "a2" not in notes
