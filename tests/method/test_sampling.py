from __future__ import annotations

import gc
import threading

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from aig.method import adapters, schedules
from aig.method.frames import Frame, clean_latents, initial_latents
from aig.method.sampling import Trajectory
from tests.sampled import frames as sampled
from tests.sampled import result

PROMPT, STEPS, SCALE = "a cat", 4, 3.0
CALL = {"prompt": PROMPT, "steps": STEPS, "guidance": SCALE}


def columns(*names: str, steps: int = STEPS) -> list[Trajectory]:
    return [Trajectory(name=name, shares=schedules.shares(name, steps)) for name in names]


@pytest.fixture
def twin(pipe, lora_file) -> torch.nn.Module:
    return adapters.fused(pipe.unet, lora_file)


def test_end_columns_equal_stock_calls(pipe, lora_pipe) -> None:
    frame = result(lora_pipe, columns("base", "draft"), seeds=[3, 5], **CALL)
    assert isinstance(frame, Frame) and (frame.step, frame.steps) == (STEPS, STEPS)
    assert frame.images.shape == (2, 2, 3, 16, 16) and frame.images.dtype == torch.float32 and frame.seconds > 0
    for stock, images in zip((pipe, lora_pipe), frame.images):
        expected = stock(
            [PROMPT] * 2,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 5)],
            output_type="pt",
        ).images
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (frame.images[0] - frame.images[1]).abs().max() > 0.01
    assert (frame.images[:, 0] - frame.images[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, DDPMScheduler])
def test_an_image_belongs_to_its_seed_in_grids_of_1_4_and_16(pipe, twin, scheduler: type) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    call = {**CALL, "samplers": columns("power_2"), "tuned": twin}
    grids = {size: result(pipe, seeds=range(7, 7 + size), **call).images[0] for size in (1, 4, 16)}
    assert (grids[4][0] - grids[1][0]).abs().max() < 1e-3
    assert (grids[16][:4] - grids[4]).abs().max() < 1e-3
    alone = result(pipe, seeds=[7 + 15], **call).images[0]
    assert (grids[16][15] - alone[0]).abs().max() < 1e-3
    assert (grids[16][0] - grids[16][1]).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, DDPMScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_columns_together_equal_columns_one_by_one(pipe, twin, scheduler: type, scale: float) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    call = {**CALL, "guidance": scale, "seeds": [1, 2], "tuned": twin}
    several = columns("base", "linear", "power_4", "step_0.6", "constant_1.5", "draft")
    together = result(pipe, several, **call).images
    alone = torch.cat([result(pipe, [column], **call).images for column in several])
    assert (together - alone).abs().max() < 1e-3
    assert min((a - b).abs().max() for i, a in enumerate(alone) for b in alone[:i]) > 1e-3


def test_rows_are_counted_by_hand(pipe, twin) -> None:
    """An evaluation of 2 seeds with guidance is 4 rows; base and step_0.5 are one until step 3 has been evaluated.

    base:  step 1 (base, step) | 2 (base, step) | 3 (base) | 4 (base)               -> 4 evaluations
    tuned: step 1 (draft)      | 2 (draft)      | 3 (step), (draft) | 4 (same)      -> 6 evaluations
    """
    frame = result(pipe, columns("base", "step_0.5", "draft"), seeds=[1, 2], tuned=twin, **CALL)
    assert frame.rows == 4 * (4 + 6)
    assert result(pipe, columns("base", "base"), seeds=[1, 1, 1], tuned=twin, **CALL).rows == 2 * STEPS
    assert result(pipe, columns("constant_0.5"), seeds=[1, 2], tuned=twin, **CALL).rows == 2 * 4 * STEPS


def test_initial_latents_belong_to_seeds(pipe) -> None:
    latents = initial_latents(pipe, range(16))
    assert latents.shape == (16, 4, 8, 8) and latents.dtype == torch.float32
    assert torch.equal(initial_latents(pipe, [3, 9]), latents[[3, 9]])
    assert abs(latents.mean()) < 0.1 and abs(latents.std() - 1) < 0.1


def test_sampler_noise_is_not_the_initial_noise(pipe, twin) -> None:
    """The generators given to a stochastic scheduler go on where the initial noise ended."""
    pipe.scheduler, seen = DDPMScheduler.from_config(pipe.scheduler.config), []
    step = pipe.scheduler.step

    def watched(model_output, timestep, sample, generator=None, return_dict=True):
        seen.append([g.get_state().clone() for g in generator])
        return step(model_output, timestep, sample, generator=generator, return_dict=return_dict)

    pipe.scheduler.step = watched
    result(pipe, columns("base", "draft"), seeds=[4], tuned=twin, **CALL)
    assert pipe.scheduler.step is watched
    used = torch.Generator().manual_seed(4)
    torch.randn(1, 4, 8, 8, generator=used)
    assert all(torch.equal(state, used.get_state()) for state in seen[0])


def test_there_is_a_frame_after_every_step(pipe, twin) -> None:
    call = {**CALL, "seeds": [1, 2], "tuned": twin}
    *frames, final = [frame for frame in sampled(pipe, columns("base", "linear"), **call) if frame.images is not None]
    assert [frame.step for frame in frames] == [1, 2, 3]
    assert all(frame.images.shape == final.images.shape for frame in frames)
    assert torch.equal(frames[0].images[0], frames[0].images[1])  # linear starts at 0, as base does
    assert [frame.rows for frame in frames] + [final.rows] == [4, 12, 24, 36]
    errors = [(frame.images - final.images).abs().mean() for frame in frames]
    assert errors[0] > errors[-1] > 0
    assert [frame.seconds for frame in frames] == sorted(frame.seconds for frame in frames)
    assert torch.equal(final.images, result(pipe, columns("base", "linear"), **call).images)  # whether one looks or not


def test_images_that_are_still_one_are_decoded_once(pipe, twin) -> None:
    decoded: list[int] = []
    pipe.vae.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(len(output)))
    for frame in sampled(pipe, columns("base", "step_0.5"), seeds=[1, 2], tuned=twin, **CALL):
        assert frame.images is frame.images  # once, when asked for
    assert decoded == [2, 2, 4, 4]  # they part at the third step


@pytest.mark.parametrize("evaluation", [0, 1, 2, STEPS])
def test_stop_ends_within_one_step(lora_pipe, evaluation: int) -> None:
    calls: list[int] = []
    lora_pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    expected, threads = result(lora_pipe, columns("linear"), seeds=[1], **CALL).images, threading.active_count()
    calls.clear()
    run = sampled(lora_pipe, columns("linear"), seeds=[1], **CALL)
    for _ in range(evaluation):
        next(run)
    run.close()
    assert len(calls) == evaluation and threading.active_count() == threads
    assert_restored(lora_pipe)
    assert torch.equal(result(lora_pipe, columns("linear"), seeds=[1], **CALL).images, expected)


def assert_restored(pipe) -> None:
    assert "forward" not in vars(pipe.unet) and "step" not in vars(pipe.scheduler)
    assert not any(layer.disable_adapters for layer in adapters.lora_layers(pipe.unet))
    assert getattr(pipe, "_interrupt", False) is False
    assert pipe._progress_bar_config == {"disable": True}


def test_everything_is_restored_after_exceptions(lora_pipe) -> None:
    expected = result(lora_pipe, columns("linear"), seeds=[1], **CALL).images

    def broken(*_) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for _ in sampled(lora_pipe, columns("linear"), seeds=[1], **CALL):
            broken()
    gc.collect()  # whoever drops a generator closes it
    assert_restored(lora_pipe)
    handle = lora_pipe.unet.mid_block.register_forward_hook(broken)
    with pytest.raises(ZeroDivisionError):
        result(lora_pipe, columns("linear"), seeds=[1], **CALL)
    handle.remove()
    assert_restored(lora_pipe)
    assert torch.equal(result(lora_pipe, columns("linear"), seeds=[1], **CALL).images, expected)


def test_no_progress_bar_and_its_settings_return(pipe, twin, capfd) -> None:
    pipe.set_progress_bar_config(desc="stock")
    result(pipe, columns("linear"), seeds=[1], tuned=twin, **CALL)
    assert capfd.readouterr().err == "" and pipe._progress_bar_config == {"desc": "stock"}
    del pipe._progress_bar_config
    result(pipe, columns("linear"), seeds=[1], tuned=twin, **CALL)
    assert capfd.readouterr().err == "" and not hasattr(pipe, "_progress_bar_config")


def test_infinite_latents_are_an_error(pipe, twin) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        result(pipe, columns("linear"), seeds=[1], tuned=twin, **{**CALL, "guidance": 1e39})


@pytest.mark.parametrize(
    ("names", "seeds", "steps", "message"),
    [
        ([], [1], STEPS, "at least one column and one seed, not 0 and 1"),
        (["linear"], [], STEPS, "at least one column and one seed, not 1 and 0"),
        (["base", "linear"], [1], STEPS + 1, "column 'base' has 4 entries of shares for 5 steps"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, twin, names: list[str], seeds: list[int], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result(pipe, columns(*names), prompt=PROMPT, seeds=seeds, steps=steps, guidance=SCALE, tuned=twin)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_clean_latents_equal_the_scheduler_s_own(kind: str, scheduler: type) -> None:
    generator = torch.Generator().manual_seed(0)
    options = {"clip_sample": False} if scheduler is DDIMScheduler else {}
    solver = scheduler(prediction_type=kind, beta_schedule="scaled_linear", **options)
    solver.set_timesteps(4)
    latents = torch.randn(2, 4, 8, 8, generator=generator) * solver.init_noise_sigma
    for t in solver.timesteps:
        solver.scale_model_input(latents, t)
        output = torch.randn(latents.shape, generator=generator)
        mine = clean_latents(solver, output, t, latents)
        if scheduler is DPMSolverMultistepScheduler:
            if solver.step_index is None:
                solver._init_step_index(t)
            theirs = solver.convert_model_output(output, sample=latents)
            latents = solver.step(output, t, latents).prev_sample
        else:
            result = solver.step(output, t, latents)
            theirs, latents = result.pred_original_sample, result.prev_sample
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_clean_latents_of_a_flow() -> None:
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(5)
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for t, sigma in zip(solver.timesteps, solver.sigmas):
        noisy = (1 - sigma) * clean + sigma * noise
        torch.testing.assert_close(clean_latents(solver, noise - clean, t, noisy), clean, atol=1e-5, rtol=1e-5)


def test_unknown_prediction_type_is_refused() -> None:
    solver = DDIMScheduler(prediction_type="score")
    solver.set_timesteps(2)
    with pytest.raises(ValueError, match="unknown prediction type 'score': choose epsilon"):
        clean_latents(solver, torch.zeros(1, 4, 8, 8), solver.timesteps[0], torch.zeros(1, 4, 8, 8))
