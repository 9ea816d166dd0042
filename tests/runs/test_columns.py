"""Columns on demand: their texts, their price, and each rule against a naive re-implementation of it."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from aig.method import adapters, cads, schedules
from aig.method.code import generator
from aig.method.frames import initial_latents
from aig.runs import columns
from aig.runs.engine import Engine
from aig.runs.plan import Plan
from aig.runs.request import Request
from tests.serving import TINY, tiny_model

RUN = Request(prompt="a b", images=2, steps=6, guidance=3.0, schedule="power_2")
EXAMPLES = [text for kind in columns.KINDS for text in columns.examples(kind, (0.0, 0.5, 2.0))]


@pytest.fixture(scope="module")
def model(make_pipe, lora_file):
    return tiny_model(make_pipe(), lora_file)


@pytest.fixture(scope="module")
def run(model):
    """The last update of a request, or of RUN with some fields changed."""
    engine = Engine(lambda: model)

    def last(**changes):
        *_, update = engine.stream(dataclasses.replace(RUN, **changes))
        return update

    yield last
    engine.close()


def added(run, text: str, **changes) -> np.ndarray:
    """The images (N, H, W, 3) of one more column."""
    return run(columns=(text,), **changes).images[3]


# --- texts ---


@pytest.mark.parametrize("text", [*EXAMPLES, "lora:0", "cads:1", "step:0:unguided", "code:4", "aig:points:0,0;0.5,0.1;1,1"])
def test_names_are_canonical_and_read_back(text):
    extra = columns.parse(text)
    assert extra.name == text and columns.parse(extra.name) == extra
    assert columns.parse(f"  {text.upper()} ") == extra


@pytest.mark.parametrize(
    ("text", "name"),
    [("lora:0.50", "lora:0.5"), ("code:2.0", "code:2"), ("aig:power_2.0", "aig:power_2"), ("step:.6:unguided", "step:0.6:unguided")],
)
def test_other_spellings_of_the_same_column(text, name):
    assert columns.parse(text).name == name


BAD = [
    "", "lora", "lora:", "lora:1.6", "lora:-1", "lora:nan", "lora:0.5:unguided", "lora:0.5:", "constant:3.1", "cads:2", "cads:",
    "code:1", "code:5", "code:2.5", "step:1.1", "step:0.5:guided", "step:0.5:unguided:x", "scheduled:constant_2", "scheduled:",
    "aig:", "aig:power_x", "kl:inf", "kl:x", "base", "tuned", "rlhf:1", "lora:0.5\0", "\ud800", "lora:٣", "<b>:1", ":" * 50,
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_column_gets_one_sentence(text):
    with pytest.raises(ValueError) as refused:
        columns.parse(text)
    assert 10 < len(str(refused.value)) < 400 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("lora:0.5", "lora:0.50"), "twice"),
        (("lora:0.1", "lora:0.2", "lora:0.3", "lora:0.4"), "up to 3"),
        (("kl:0.3",), "kl:0.5"),
        (("aig:" + "p" * 3000,), "3004 characters"),
        ("lora:0.5", "must be a list"),
        ((3,), "must be text"),
        (None, "must be a list"),
        (("scheduled:constant_1.5",), "LoRA scale 2.25"),
    ],
)
def test_requests_with_other_columns_are_refused(model, given, named):
    with pytest.raises(ValueError, match=named):
        Plan.of(dataclasses.replace(RUN, columns=given, lora_scale=1.5), model.facts)


def test_a_list_from_json_is_as_good_as_a_tuple():
    assert Request(columns=["lora:0.5"]) == Request(columns=("lora:0.5",))


def test_every_column_has_a_title_of_its_own_and_code_comes_last():
    titles = [columns.title(text) for text in EXAMPLES]
    assert len(set(titles)) == len(EXAMPLES)
    added = Plan.of(dataclasses.replace(RUN, columns=("code:2", "lora:0.5")), TINY).columns[3:]
    assert [(column.role, column.title) for column in added] == [("added", "LoRA scale 0.5"), ("added", "CoDe 2")]


# --- price ---


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("closed", [False, True])
def test_the_announced_rows_are_the_rows(run, guidance, closed):
    rng = random.Random(f"{guidance} {closed}")
    texts = [*EXAMPLES, "lora:1", "constant:0", "scheduled:step_0.6", "scheduled:constant_0.5", "aig:power_2", "cads:0", "lora:0"]
    for _ in range(14):
        changes = {
            "columns": tuple(rng.sample(texts, 3)),
            "guidance": guidance,
            "closed": closed,
            "schedule": rng.choice(["power_2", "step_0.6"]),
        }
        assert run(**changes).rows == Plan.of(dataclasses.replace(RUN, **changes), TINY).cost, changes


def test_prices_by_hand():
    """A model takes two rows a step; power_2 is the base at its first step and mixes from the second on."""
    alone = dataclasses.replace(RUN, images=1)
    price = {
        text: Plan.of(dataclasses.replace(alone, columns=(text,)), TINY).cost - Plan.of(alone, TINY).cost
        for text in (*EXAMPLES, "lora:1", "constant:0")
    }
    assert Plan.of(alone, TINY).cost == 2 * (2 + 3 + 4 * 4)  # at the second step AIG still stands where base does
    assert price["lora:1"] == price["constant:0"] == 0
    assert price["lora:0.5"] == price["kl:0.5"] == 2 * 6
    assert price["aig:power_4"] == 2 * 4 * 2  # it parts from AIG after the second step
    assert price["constant:0.5"] == 2 * 5 * 2  # at the first step base and tuned are there already
    assert price["step:0.6"] == 2 * 2  # four steps of base are there already
    assert price["step:0.6:unguided"] == 1 * 2
    assert price["scheduled:power_2"] == 2 * 5
    assert price["cads:0.1"] == 2 * 6 - 1  # the first step without prompt is the tuned column's
    assert price["code:2"] == 2 * 2 * 6


def test_columns_count_among_the_work_that_is_refused(model):
    fits = dataclasses.replace(RUN, images=16, steps=40)
    Plan.of(fits, model.facts)
    with pytest.raises(ValueError, match="model evaluations"):
        Plan.of(dataclasses.replace(fits, columns=("code:4",)), model.facts)


# --- rules ---


def pixels(pipe, latents: torch.Tensor) -> np.ndarray:
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def loop(pipe, predict) -> np.ndarray:
    """Both images one after the other: predict(i, x, t, text, empty, seed) is the guided prediction of step i."""
    results = []
    for seed in RUN.seeds:
        text, empty = pipe.encode_prompt(RUN.prompt, "cpu", 1, True)
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(RUN.steps)
        x = initial_latents(pipe, [seed])
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(predict(i, x, t, text, empty, seed), t, x).prev_sample
        results.append(pixels(pipe, x))
    return np.concatenate(results)


def guided(model, x, t, text, empty) -> torch.Tensor:
    unconditional, conditional = model(x, t, empty).sample, model(x, t, text).sample
    return unconditional + RUN.guidance * (conditional - unconditional)


def same(ours: np.ndarray, naive: np.ndarray) -> None:
    assert np.abs(ours.astype(int) - naive).max() <= 1


def stock(lora_pipe, scales: list[float]) -> np.ndarray:
    """The stock pipeline with the stock LoRA, its weight set anew before every step."""
    name = lora_pipe.get_active_adapters()

    def advance(pipe, i, t, inputs):
        if i + 1 < len(scales):
            pipe.set_adapters(name, [scales[i + 1]])
        return inputs

    lora_pipe.set_adapters(name, [scales[0]])
    images = lora_pipe(
        [RUN.prompt] * RUN.images,
        num_inference_steps=RUN.steps,
        guidance_scale=RUN.guidance,
        latents=initial_latents(lora_pipe, RUN.seeds),
        callback_on_step_end=advance,
        output_type="latent",
    ).images
    with torch.no_grad():
        return pixels(lora_pipe, images)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_lora_scale_is_the_stock_adapter_weight(run, lora_pipe, scale):
    same(added(run, f"lora:{scale:g}"), stock(lora_pipe, [scale] * RUN.steps))


def test_kl_is_the_lora_of_that_coefficient(run, lora_pipe):
    same(added(run, "kl:0.5"), stock(lora_pipe, [1 / 1.5] * RUN.steps))  # which tiny_model weakens by 1 + kl


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scheduled_lora_is_the_stock_adapter_weight_set_at_every_step(run, lora_pipe, scale):
    shares = schedules.shares("power_2", RUN.steps)
    same(added(run, "scheduled:power_2", lora_scale=scale), stock(lora_pipe, [scale * g for g in shares]))


def test_a_second_schedule_and_a_constant_mix_are_mixes_of_two_models(run, model):
    for text, g in (("aig:linear", schedules.shares("linear", RUN.steps)), ("constant:1.5", (1.5,) * RUN.steps)):

        def predict(i, x, t, c, empty, seed, g=g):
            base, tuned = guided(model.pipe.unet, x, t, c, empty), guided(model.twin("preference", 0.0, 1.0), x, t, c, empty)
            return base + g[i] * (tuned - base)

        same(added(run, text), loop(model.pipe, predict))


@pytest.mark.parametrize("unguided", [False, True])
def test_step_switches_models_and_may_drop_guidance(run, model, unguided):
    def predict(i, x, t, text, empty, seed):
        if i / RUN.steps < 0.5:
            return guided(model.pipe.unet, x, t, text, empty)
        tuned = model.twin("preference", 0.0, 1.0)
        return tuned(x, t, text).sample if unguided else guided(tuned, x, t, text, empty)

    same(added(run, "step:0.5" + ":unguided" * unguided), loop(model.pipe, predict))


def test_cads_is_the_formula_of_the_paper(run, model):
    def predict(i, x, t, text, empty, seed):
        time = 1 - i / RUN.steps
        gamma = 1.0 if time <= 0.6 else 0.0 if time >= 0.9 else (0.9 - time) / (0.9 - 0.6)
        n = torch.from_numpy(np.random.default_rng((seed, i)).standard_normal(text.shape[1:], dtype=np.float32))
        y = np.sqrt(gamma) * text + 0.25 * np.sqrt(1 - gamma) * n
        y = (y - y.mean()) / y.std() * text.std() + text.mean()
        return guided(model.twin("preference", 0.0, 1.0), x, t, y if gamma < 1 else text, empty)

    same(added(run, "cads:0.25"), loop(model.pipe, predict))


def test_cads_fades_from_noise_to_the_prompt():
    y = torch.randn(8, 16)
    change = cads.change(0.5, seed=7, steps=10)
    seen = [change(i, y) for i in range(10)]
    gaps = [(step - y).abs().mean().item() for step in seen]
    assert gaps[0] > gaps[2] > gaps[3] > 0 and not any(gaps[4:])
    assert all(abs(step.mean() - y.mean()) < 1e-5 and abs(step.std() - y.std()) < 1e-5 for step in seen)
    assert torch.equal(change(1, y), seen[1]) and not torch.equal(cads.change(0.5, seed=8, steps=10)(1, y), seen[1])
    assert cads.change(0.0, seed=7, steps=10) is None


@torch.no_grad()
def naive_code(model, n: int, seed: int) -> np.ndarray:
    """Blockwise best-of-N written out: predict the clean image anew at the end of every block of 4 steps."""
    pipe = model.pipe
    text, empty = pipe.encode_prompt(RUN.prompt, "cpu", 1, True)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(RUN.steps)
    generators = [generator(seed, k) for k in range(n)]
    candidates = [initial_latents(pipe, [seed])] * n

    def reward(clean: torch.Tensor) -> float:
        return (pipe.vae.decode(clean / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).mean().item()

    for i, t in enumerate(scheduler.timesteps):
        if i in (4, 8):
            clean = [scheduler.step(guided(pipe.unet, x, t, text, empty), t, x).pred_original_sample for x in candidates]
            candidates = [max(zip(map(reward, clean), range(n), candidates, strict=True))[2]] * n
        candidates = [
            scheduler.step(guided(pipe.unet, x, t, text, empty), t, x, generator=g).prev_sample
            for x, g in zip(candidates, generators, strict=True)
        ]
    return pixels(pipe, max(candidates, key=reward))[0]


@pytest.mark.parametrize("n", [2, 3])
def test_code_is_blockwise_best_of_n(run, model, n):
    ours = added(run, f"code:{n}")
    same(ours, np.stack([naive_code(model, n, seed) for seed in RUN.seeds]))


def test_code_wins_reward_and_joins_the_run(run):
    update = run(columns=("code:4", "lora:0.5"), images=4)
    assert update.state == "done" and update.images.shape == (5, 4, 16, 16, 3) and update.step == update.plan.steps == 12
    base, *_, code = update.scores.columns
    assert code.name == "CoDe 4" and code.rewards["preference"].value > base.rewards["preference"].value


# --- neutral values change nothing, all others do ---


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("lora:1", 1), ("lora:0", 0), ("kl:0", 1), ("aig:power_2", 2), ("aig:base", 0), ("aig:draft", 1), ("constant:0", 0),
        ("constant:1", 1), ("step:0", 1), ("step:1", 0), ("step:1:unguided", 0), ("scheduled:draft", 1), ("scheduled:base", 0),
        ("cads:0", 1),
    ],
)  # fmt: skip
def test_neutral_values_are_another_column_bit_for_bit(run, text, column):
    images = run(columns=(text,)).images
    assert np.array_equal(images[3], images[column])


def test_columns_that_are_one_by_another_name_agree(run):
    same(added(run, "scheduled:constant_0.5"), added(run, "lora:0.5"))
    same(added(run, "step:0.5:unguided", guidance=1.0), added(run, "step:0.5", guidance=1.0))


def test_added_columns_leave_the_others_as_they_are(run):
    alone = run().images
    for texts in (("lora:0.5", "cads:0.1", "scheduled:power_2"), ("step:0.6:unguided", "constant:1.5", "code:2")):
        assert np.abs(run(columns=texts).images[:3].astype(int) - alone).max() <= 1
    assert np.array_equal(run().images, alone)


def test_every_column_and_every_parameter_changes_pixels(run):
    texts = [*EXAMPLES, "cads:0.5", "code:3", "step:0.3", "step:0.3:unguided", "scheduled:linear", "scheduled:power_4"]
    images = {text: added(run, text) for text in texts} | dict(zip(("base", "tuned", "aig"), run().images))
    seen = {}
    for text, pictures in images.items():
        assert seen.setdefault(pictures.tobytes(), text) == text


@pytest.mark.parametrize("text", ["cads:0.2", "code:2", "scheduled:power_2", "step:0.6:unguided"])
def test_an_image_belongs_to_its_seed_in_grids_of_1_4_and_16(run, text):
    one, four, sixteen = (added(run, text, images=n, steps=5) for n in (1, 4, 16))
    same(four[:1], one)
    same(sixteen[:4], four)
    same(sixteen[15:], added(run, text, images=1, steps=5, seed=RUN.seed + 15))


def test_blending_is_exact_at_its_ends_and_in_place(model):
    base, tuned = model.pipe.unet, model.twin("preference", 0.0, 1.0)
    at = adapters.blend(base, tuned)
    x, c = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 16)
    with torch.no_grad():
        expected = [m(x, 500, c, return_dict=False)[0] for m in (base, tuned)]
        for _ in range(2):  # there and back: nothing is left of the other end
            for a, wanted in zip((0.0, 1.0), expected, strict=True):
                assert torch.equal(at(a)(x, 500, c, return_dict=False)[0], wanted)
    assert at(0.3) is at(0.3)
