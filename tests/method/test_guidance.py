from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
)
from torch import Tensor, nn

from aig.method import adapters, schedules
from aig.method.guidance import annealed, mix

PROMPT, STEPS, SCALE = "a cat", 5, 3.0
OFFICIAL = ("base", "draft", "linear", "power_2", "power_4", "step_0.6")


@pytest.fixture
def twin(pipe: StableDiffusionPipeline, lora_file) -> nn.Module:
    return adapters.fused(pipe.unet, lora_file)


def noise(*seeds: int) -> Tensor:
    return torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def run(pipe: StableDiffusionPipeline, *seeds: int, steps: int = STEPS, scale: float = SCALE) -> Tensor:
    """The stock call: final latents (len(seeds), 4, 8, 8)."""
    return pipe(
        [PROMPT] * len(seeds),
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=noise(*seeds),
        generator=[torch.Generator().manual_seed(seed + 1000) for seed in seeds],
        output_type="latent",
    ).images


@torch.no_grad()
def naive(pipe: StableDiffusionPipeline, tuned: nn.Module, g: tuple[float, ...], seed: int) -> Tensor:
    """The method written out: two models, each with its own classifier-free guidance, mixed at every evaluation."""
    text, empty = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(len(g))
    share = dict(zip(sorted(set(scheduler.timesteps.tolist()), reverse=True), g))
    x = noise(seed) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        z, eps = scheduler.scale_model_input(x, t), []
        for model in (pipe.unet, tuned):
            unconditional, conditional = (model(z, t, c).sample for c in (empty, text))
            eps.append(unconditional + SCALE * (conditional - unconditional))
        x = scheduler.step((1 - share[t.item()]) * eps[0] + share[t.item()] * eps[1], t, x).prev_sample
    return x


def test_end_points_equal_stock_pipelines_bit_for_bit(pipe, lora_pipe, twin) -> None:
    base, tuned = run(pipe, 1, 2), run(lora_pipe, 1, 2)
    assert (base - tuned).abs().max() > 0.1
    with annealed(lora_pipe, [0.0] * STEPS) as ledger:
        assert torch.equal(run(lora_pipe, 1, 2), base)
    assert ledger.rows == {"base": 4 * STEPS, "tuned": 0}
    with annealed(lora_pipe, [1.0] * STEPS) as ledger:
        assert torch.equal(run(lora_pipe, 1, 2), tuned)
    assert ledger.rows == {"base": 0, "tuned": 4 * STEPS}

    with annealed(pipe, [0.0] * STEPS, twin):
        assert torch.equal(run(pipe, 1, 2), base)
    with annealed(pipe, [1.0] * STEPS, twin):
        mixed = run(pipe, 1, 2)
    pipe.unet = twin
    assert torch.equal(run(pipe, 1, 2), mixed)


def test_end_points_are_the_images_too(pipe, twin) -> None:
    """Decoding included: what is decoded is the mixed latent, not a model's own x0."""
    call = {"num_inference_steps": STEPS, "latents": noise(1), "output_type": "np"}
    stock = pipe(PROMPT, **call).images
    with annealed(pipe, [0.0] * STEPS, twin):
        assert np.array_equal(pipe(PROMPT, **call).images, stock)
    with annealed(pipe, [1.0] * STEPS, twin):
        mixed = pipe(PROMPT, **call).images
    pipe.unet = twin
    assert np.array_equal(pipe(PROMPT, **call).images, mixed)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_schedules_equal_a_naive_loop(pipe, lora_pipe, twin, name: str) -> None:
    g = schedules.shares(name, STEPS)
    expected = naive(pipe, twin, g, 1)
    with annealed(pipe, g, twin):
        torch.testing.assert_close(run(pipe, 1), expected, atol=1e-4, rtol=1e-4)
    with annealed(lora_pipe, g):
        torch.testing.assert_close(run(lora_pipe, 1), expected, atol=1e-4, rtol=1e-4)


def test_schedules_all_differ(pipe, twin) -> None:
    results = []
    for name in (*OFFICIAL, "sigmoid_12_0.5", "cosine", "constant_0.5", "constant_1.5"):
        with annealed(pipe, schedules.shares(name, STEPS), twin):
            results.append(run(pipe, 1))
    assert min((a - b).abs().max() for i, a in enumerate(results) for b in results[:i]) > 1e-3


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler])
def test_every_solver_equals_the_naive_loop(pipe, twin, scheduler: type) -> None:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # latents of moderate size
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **betas)
    for g in ((0.0, 0.1, 0.5, 0.9, 1.0), (1.5,) * STEPS, (0.0, 1.0, 0.0, 1.0, 0.3)):
        expected = naive(pipe, twin, g, 1)
        with annealed(pipe, g, twin):
            torch.testing.assert_close(run(pipe, 1), expected, atol=1e-3, rtol=1e-3)


def test_steps_that_round_to_the_same_timestep_are_told_apart(pipe, twin) -> None:
    """Many Karras noise levels can lie within half a timestep of each other; each still gets its own weight."""
    pipe.scheduler = DPMSolverMultistepScheduler(num_train_timesteps=50, beta_schedule="linear", use_karras_sigmas=True)
    pipe.scheduler.set_timesteps(30)
    timesteps = pipe.scheduler.timesteps.tolist()
    twins = next(i for i in range(1, 30) if timesteps[i] == timesteps[i - 1])
    with annealed(pipe, [0.0] * twins + [1.0] * (30 - twins), twin) as ledger:
        run(pipe, 1, steps=30)
    assert ledger.rows == {"base": 2 * twins, "tuned": 2 * (30 - twins)}


def test_second_order_solver_mixes_at_every_evaluation(pipe, twin) -> None:
    """Heun evaluates the first step once and every other twice, with base and tuned model each time."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with annealed(pipe, [0.5] * STEPS, twin) as ledger:
        run(pipe, 1)
    assert ledger.rows == {"base": 2 * (2 * STEPS - 1), "tuned": 2 * (2 * STEPS - 1)}


def test_mix_selects_at_the_ends_and_interpolates_between() -> None:
    base, tuned = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    base[1], tuned[0] = float("nan"), float("inf")  # never looked at
    mixed = mix(base, tuned, torch.tensor([0.0, 1.0, 0.25, 2.0]))
    assert torch.equal(mixed[0], base[0]) and torch.equal(mixed[1], tuned[1])
    torch.testing.assert_close(mixed[2:], torch.stack([0.75 * base[2] + 0.25 * tuned[2], 2 * tuned[3] - base[3]]))


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_weights_of_each_image_equal_runs_one_by_one(pipe, twin, scale: float) -> None:
    names, seeds = ("base", "power_2", "step_0.6", "constant_1.5", "draft"), (1, 2, 1, 3, 3)
    table = torch.tensor([schedules.shares(name, STEPS) for name in names], dtype=torch.float64).T  # (T, B)
    with annealed(pipe, table, twin):
        together = run(pipe, *seeds, scale=scale)
    for image, name, seed in zip(together, names, seeds):
        with annealed(pipe, schedules.shares(name, STEPS), twin):
            torch.testing.assert_close(run(pipe, seed, scale=scale)[0], image, atol=1e-4, rtol=1e-4)


def test_weights_may_be_lists_tuples_arrays_or_tensors(pipe, twin) -> None:
    table, results = [[0.0, 0.5], [0.3, 0.5], [1.0, 0.5]], []
    array = np.array(table)
    for form in (table, tuple(map(tuple, table)), array, list(array), torch.from_numpy(array)):
        with annealed(pipe, form, twin):
            results.append(run(pipe, 1, 2, steps=3))
    assert all(torch.equal(result, results[0]) for result in results)


def test_skipping_is_counted_exactly(pipe, twin) -> None:
    """Two images with guidance are 4 rows a step: base for g < 1, tuned for g > 0."""
    with annealed(pipe, [[0.0, 1.0], [0.0, 0.5], [1.0, 1.0], [0.0, 0.0], [2.0, 0.1]], twin) as ledger:
        run(pipe, 1, 2)
    assert ledger.rows == {"base": 2 * (1 + 2 + 0 + 2 + 2), "tuned": 2 * (1 + 1 + 2 + 0 + 2)}
    assert ledger.total == 26


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_prefix_sharing_changes_nothing_and_is_counted_exactly(pipe, twin, scheduler: type) -> None:
    """Images 0, 1, 2 have one seed: always base, step, step with a mixed end; image 3 has another."""
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    table = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.5], [0, 1, 1, 1], [0, 1, 0.5, 1]]
    with annealed(pipe, table, twin) as plain:
        expected = run(pipe, 7, 7, 7, 8)
    assert plain.rows == {"base": 2 * (4 + 4 + 4 + 1 + 2), "tuned": 2 * (0 + 0 + 1 + 3 + 3)}
    with annealed(pipe, table, twin, groups=["a", "a", "a", "b"]) as shared:
        assert shared.leader == [0, 0, 0, 3]
        result = run(pipe, 7, 7, 7, 8)
    # evaluated as one: 0-2 up to step 3, in which the base model serves image 0 and the tuned model 1-2; 1-2 at step 4
    assert shared.rows == {"base": 2 * (2 + 2 + 2 + 1 + 2), "tuned": 2 * (0 + 0 + 1 + 2 + 2)}
    assert shared.leader == [0, 1, 2, 3]
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_prefix_sharing_is_right_for_second_order_solvers(pipe, twin) -> None:
    """Heun's first stage of a step already has that step's share, so images part in the middle of it.

    Noise levels up to 15: latents in the ten thousands, as the cosine schedule has them, magnify rounding.
    """
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config, **betas)
    table = [[0, 0], [0, 0.5], [0.2, 1]]
    with annealed(pipe, table, twin):
        expected = run(pipe, 7, 7, steps=3)
    with annealed(pipe, table, twin, groups=[0, 0]) as ledger:
        torch.testing.assert_close(run(pipe, 7, 7, steps=3), expected, atol=1e-4, rtol=1e-4)
    # evaluations at steps 0, 1, 1, 2, 2: together at 0 and at the first 1 (base and tuned of one image), then apart
    assert ledger.rows == {"base": 2 * (1 + 1 + 2 + 1 + 1), "tuned": 2 * (0 + 1 + 1 + 2 + 2)}


def test_one_set_of_weights_with_groups(pipe, twin) -> None:
    with annealed(pipe, [0.5] * STEPS, twin, groups=[0, 0, 1]) as ledger:
        result = run(pipe, 7, 7, 8)
    assert ledger.rows == {"base": 4 * STEPS, "tuned": 4 * STEPS} and ledger.leader == [0, 0, 2]
    assert torch.equal(result[0], result[1]) and not torch.equal(result[0], result[2])


def test_named_and_nested_inputs_follow_their_rows(make_pipe) -> None:
    """A denoiser called by keywords, with a timestep a row and size conditions a row in a dict, as SDXL's."""
    from diffusers import UNet2DConditionModel

    config = {**make_pipe().unet.config, "addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    config["projection_class_embeddings_input_dim"] = 16 + 6 * 4
    pipe, base, tuned = make_pipe(), UNet2DConditionModel.from_config(config), UNet2DConditionModel.from_config(config)
    pipe.unet = base
    pipe.scheduler.set_timesteps(2)
    pipe._guidance_scale = SCALE
    inputs = {
        "sample": noise(1, 2, 3, 4),
        "timestep": pipe.scheduler.timesteps[:1].expand(4),
        "encoder_hidden_states": torch.randn(4, 8, 16),
        "added_cond_kwargs": {"text_embeds": torch.randn(4, 16), "time_ids": torch.randn(4, 6)},
    }
    with torch.no_grad():
        a, b = base(**inputs).sample, tuned(**inputs).sample
        with annealed(pipe, [[0.0, 1.0], [0.0, 0.0]], tuned) as ledger:
            eps = pipe.unet(**inputs).sample
    torch.testing.assert_close(eps, torch.stack([a[0], b[1], a[2], b[3]]), atol=1e-5, rtol=1e-5)
    assert ledger.rows == {"base": 2, "tuned": 2}


class Broken(Exception):
    pass


def test_everything_is_restored_after_an_exception(lora_pipe) -> None:
    def broken(*_) -> None:
        raise Broken

    lora_pipe.disable_lora()
    signature, expected = inspect.signature(lora_pipe.unet.forward), run(lora_pipe, 1)
    for table in ([0.0] * STEPS, [0.5] * STEPS):
        with pytest.raises(Broken), annealed(lora_pipe, table):
            assert "forward" in vars(lora_pipe.unet) and inspect.signature(lora_pipe.unet.forward) == signature
            lora_pipe(PROMPT, num_inference_steps=STEPS, callback_on_step_end=broken)
        assert "forward" not in vars(lora_pipe.unet)
        assert all(layer.disable_adapters for layer in adapters.lora_layers(lora_pipe.unet))
    handle = lora_pipe.unet.mid_block.register_forward_hook(broken)  # in the middle of a model, with the LoRA switched
    with pytest.raises(Broken), annealed(lora_pipe, [1.0] * STEPS):
        run(lora_pipe, 1)
    handle.remove()
    assert all(layer.disable_adapters for layer in adapters.lora_layers(lora_pipe.unet))
    assert torch.equal(run(lora_pipe, 1), expected)


def test_a_forward_replaced_before_us_returns(pipe, twin) -> None:
    stock, calls = pipe.unet.forward, []

    def hooked(*args, **kwargs):
        calls.append(1)
        return stock(*args, **kwargs)

    hooked.__wrapped__ = stock
    pipe.unet.forward = hooked
    with annealed(pipe, [0.0] * STEPS, twin):
        run(pipe, 1)
    assert pipe.unet.forward is hooked and len(calls) == STEPS


@pytest.mark.parametrize(
    ("table", "groups", "message"),
    [
        ([0.0] * 4, None, "weights for 4 steps, but the scheduler runs 5"),
        ([0.0] * 6, None, "weights for 6 steps, but the scheduler runs 5"),
        ([[0.0] * 3] * STEPS, None, "weights for 3 images, but the pipeline runs 2"),
        ([[0.0] * 4] * STEPS, None, "weights for 4 images, but the pipeline runs 2"),
        ([0.0] * STEPS, [0, 0, 0], "weights for 3 images, but the pipeline runs 2"),
        ([[0.0] * 2] * STEPS, [0], "as many as groups"),
        ([[0.0] * 2, [0.0]], None, "T or T x B numbers"),
        ([[], []], None, "T or T x B numbers"),
        ([], None, "T or T x B numbers"),
        ([0.0, float("nan")], None, "finite numbers, not nan"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, twin, table, groups, message: str) -> None:
    with pytest.raises(ValueError, match=message), annealed(pipe, table, twin, groups=groups):
        run(pipe, 1, 2)
    assert "forward" not in vars(pipe.unet)


def test_every_image_may_have_its_own_model_at_every_step(pipe, twin, lora_file) -> None:
    other, table = adapters.fused(pipe.unet, lora_file, 0.5), [0.0, 0.5, 1.0, 1.0, 0.3]
    models = [[twin, other], [twin, other], [other, twin], [twin, twin], [other, other]]
    with annealed(pipe, [[g, g] for g in table], models, groups=[0, 0]) as ledger:
        together = run(pipe, 7, 7)
    # base: one, one (two images until the tuned models part them), none, none, two; tuned: none, two, two, two, two
    assert ledger.rows == {"base": 2 * (1 + 1 + 2), "tuned": 2 * (2 + 2 + 2 + 2)}
    for b in (0, 1):
        with annealed(pipe, [[g] for g in table], [[row[b]] for row in models]):
            torch.testing.assert_close(run(pipe, 7)[0], together[b], atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_unguided_steps_cost_half_and_equal_a_call_without_guidance(pipe, twin) -> None:
    with annealed(pipe, [1.0] * STEPS, twin, groups=[0], guided=[[False]] * STEPS) as ledger:
        unguided = run(pipe, 1)
    assert ledger.rows == {"base": 0, "tuned": STEPS}
    with annealed(pipe, [1.0] * STEPS, twin):
        torch.testing.assert_close(run(pipe, 1, scale=1.0), unguided, atol=1e-4, rtol=1e-4)


def test_texts_change_what_the_prompted_branch_reads(pipe, twin) -> None:
    """An embedding replaced by that of another prompt gives that prompt's picture, and only for its own image."""
    other, _ = pipe.encode_prompt("a dog", "cpu", 1, False)
    steps = []
    with annealed(pipe, [[0.0] * 2] * STEPS, twin, texts=[None, lambda i, text: steps.append(i) or other[0]]):
        cat, dog = run(pipe, 1, 1)
    assert steps == list(range(STEPS))
    expected = pipe("a dog", num_inference_steps=STEPS, guidance_scale=SCALE, latents=noise(1), output_type="latent").images
    torch.testing.assert_close(dog, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cat, run(pipe, 1)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "misfit",
    [{"guided": [[True]] * STEPS}, {"guided": [[True] * 2] * 3}, {"texts": [None]}, {"tuned": [[None] * 2]}, {"tuned": [[None]] * STEPS}],
)
def test_tables_that_do_not_fit_the_weights_are_refused(pipe, twin, misfit) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(misfit))} must fit the weights of {STEPS} steps and 2 images"):
        with annealed(pipe, [[0.5] * 2] * STEPS, **{"tuned": twin} | misfit):
            pass


def test_a_tuned_model_is_needed(pipe) -> None:
    with pytest.raises(ValueError, match="no LoRA is loaded"), annealed(pipe, [0.5] * STEPS):
        pass


def test_both_predictions_can_be_looked_at_before_they_are_mixed(pipe, twin) -> None:
    seen = []
    with annealed(pipe, (0.0, 0.3, 1.0), twin, look=lambda *told: seen.append(told)):
        looked = run(pipe, 1, 2, steps=3)
    with annealed(pipe, (0.0, 0.3, 1.0), twin):
        assert torch.equal(run(pipe, 1, 2, steps=3), looked)
    assert [(step, base is None, tuned is None) for step, base, tuned in seen] == [(0, False, True), (1, False, False), (2, True, False)]
    _, base, tuned = seen[1]
    assert base.shape == tuned.shape == (4, 4, 8, 8) and not torch.isnan(base).any() and (base - tuned).abs().max() > 1e-3


def test_rows_that_nobody_asked_for_are_not_looked_at(pipe, twin) -> None:
    seen = []
    with annealed(pipe, [(0.0, 1.0)], twin, look=lambda *told: seen.append(told)):
        run(pipe, 1, 2, steps=1)
    ((_, base, tuned),) = seen
    assert [bool(torch.isnan(row).all()) for row in base] == [False, True] * 2
    assert [bool(torch.isnan(row).all()) for row in tuned] == [True, False] * 2
