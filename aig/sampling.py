"""Columns x seeds: several schedules side by side on the same noise, in one call of a stock diffusers pipeline.

What this leaves out: the solver, the prompt and the classifier-free guidance, which stay the pipeline's.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from aig import cads, families
from aig.budget import UNLIMITED, Budget
from aig.guidance import annealed
from aig.steps import step_of


@dataclass(frozen=True, kw_only=True)
class Column:
    """One way to sample: its T shares of the tuned model, and what else may differ from step to step."""

    name: str
    weights: tuple[float, ...]
    tuned: Sequence[Callable] | None = None  # its tuned denoiser at each step; None for the run's
    guided: Sequence[bool] | None = None  # whether classifier-free guidance is on; None for always
    noise: float = 0.0  # of CADS, on the prompt's embedding


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The images at one moment of a run: predicted clean images on the way, the result when ``final``."""

    step: int  # 1 to steps
    steps: int
    images: Tensor  # (columns, N, 3, H, W) in [0, 1], float32, on the CPU
    rows: int  # model evaluations so far, one for each image and prompt branch: rows of a batch
    seconds: float
    final: bool

    def beside(self, done: Frame) -> Frame:
        """This moment of a second run together with the end of a first one, as one run."""
        return replace(
            self,
            step=done.step + self.step,
            steps=done.steps + self.steps,
            images=torch.cat([done.images, self.images]),
            rows=done.rows + self.rows,
            seconds=done.seconds + self.seconds,
        )


class Stopped(Exception):
    """The run was stopped on request."""


def initial_latents(pipe: DiffusionPipeline, seeds: Sequence[int], size: int | None = None) -> Tensor:
    """Unit noise (N, C, h, w), float32 on the CPU; image k depends on seed k alone, not on how many there are."""
    return torch.cat([_noise(pipe, seed, size)[0] for seed in seeds])


@torch.no_grad()
def sample(
    pipe: DiffusionPipeline,
    columns: Sequence[Column],
    *,
    prompt: str,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    tuned: nn.Module | None = None,
    on_frame: Callable[[Frame], None] | None = None,
    stop: Callable[[], bool] | None = None,
    preview_share: float = 0.05,
    size: int | None = None,
    budget: Budget = UNLIMITED,
) -> Frame:
    """All columns for one prompt, one image a seed, and the final Frame.

    steps: T, the length of every column's weights. guidance: the classifier-free guidance scale, off up to 1; for
    models that are distilled for guidance the scale that they read.
    tuned: the tuned denoiser, None for the LoRA loaded in the pipeline.
    on_frame: receives previews; the final Frame is only returned. A step is shown when previews (consumer included)
    have cost at most ``preview_share`` of the model's time so far, so the first always is; the last one never.
    stop: asked before the run and after every evaluation; once true, no more models run and Stopped is raised.
    size: height and width of the images in pixels; None for those that the model was trained at.
    budget: how many rows and images are computed at once.
    Raises ValueError for empty or ill-fitting arguments, FloatingPointError when latents are not finite. The pipeline
    is left as it was in every case.
    """
    _check(columns, seeds, steps)
    images = [(column, seed) for column in columns for seed in seeds]
    noises, start = [_noise(pipe, seed, size) for _, seed in images], time.perf_counter()
    generators, own = [generator for _, generator in noises], any(column.tuned for column in columns)

    def frame(step: int, latents: Tensor, final: bool) -> Frame:
        pictures = decode(pipe, latents, ledger.leader, budget.images).unflatten(0, (len(columns), len(seeds)))
        seconds = time.perf_counter() - start
        return Frame(step=step, steps=steps, images=pictures, rows=ledger.total, seconds=seconds, final=final)

    def show(step: int, latents: Tensor) -> None:
        on_frame(frame(step, latents, False))

    see = previews(pipe, steps, on_frame and show, stop, preview_share)
    if stop is not None and stop():
        raise Stopped
    with (
        annealed(
            pipe,
            list(zip(*(column.weights for column, _ in images))),  # (T, columns * N)
            list(zip(*(column.tuned or [tuned] * steps for column, _ in images))) if own else tuned,
            groups=[seed for _, seed in images],
            guided=list(zip(*(column.guided or [True] * steps for column, _ in images))),
            texts=[cads.change(column.noise, seed, steps) for column, seed in images],
            rows_at_once=budget.rows,
        ) as ledger,
        watched(pipe, see, generators),
    ):
        latents = pipe(
            prompt=prompt,
            num_images_per_prompt=len(noises),  # the prompt is encoded once
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=families.laid_out(pipe, torch.cat([noise for noise, _ in noises])),
            generator=generators,
            output_type="latent",
            **families.call_options(pipe, size),
        ).images
    finite(latents)
    return frame(steps, latents, True)


def previews(
    pipe: DiffusionPipeline,
    steps: int,
    show: Callable[[int, Tensor], None] | None,
    stop: Callable[[], bool] | None,
    preview_share: float,
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """For ``watched``: raises Stopped when asked to stop, else shows (step, clean latents) when the share allows.

    Not every pipeline has an interrupt flag (PixArt has none), but all let an exception through.
    """
    start, spent = time.perf_counter(), 0.0

    def see(output: Tensor, timestep: Tensor, latents: Tensor) -> None:
        nonlocal spent
        if stop is not None and stop():
            raise Stopped
        step, now = 1 + step_of(pipe.scheduler, timestep), time.perf_counter()
        if show is None or step == steps or spent > preview_share * (now - start - spent):
            return
        show(step, clean_latents(pipe.scheduler, output, timestep, latents))
        spent += time.perf_counter() - now

    return see


def finite(latents: Tensor) -> None:
    """FloatingPointError unless all numbers are finite."""
    if not torch.isfinite(latents).all():
        raise FloatingPointError("the final latents are not finite: a weight or the guidance scale is too large")


def clean_latents(scheduler: object, output: Tensor, timestep: Tensor | float, latents: Tensor) -> Tensor:
    """The clean latents x0 that a model output predicts at x_t; all (B, C, h, w).

    Covers eps-, v- and x0-prediction of schedulers that keep x_t at unit variance (DDIM, DPM-Solver) or scale it up
    (Euler, Heun), and flow velocities. Raises ValueError for any other prediction type.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    sigmas, index = getattr(scheduler, "sigmas", None), scheduler.timesteps.tolist().index(float(timestep))
    if kind == "flow_prediction" or scheduler.config.get("use_flow_sigmas"):  # x_t = (1 - sigma) x0 + sigma noise
        return latents - sigmas[index].to(latents) * output
    if sigmas is None:
        alpha2 = scheduler.alphas_cumprod[int(timestep)].to(latents)
    else:  # sigma / alpha of every step
        alpha2 = 1 / (1 + sigmas[index].to(latents) ** 2)
    alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
    latents = scheduler.scale_model_input(latents, timestep)  # now x_t = alpha x0 + sigma noise
    match kind:
        case "epsilon":
            return (latents - sigma * output) / alpha
        case "v_prediction":
            return alpha * latents - sigma * output
        case "sample":
            return output
    raise ValueError(f"unknown prediction type {kind!r}: choose epsilon, v_prediction, sample or flow_prediction")


def _check(columns: Sequence[Column], seeds: Sequence[int], steps: int) -> None:
    if not columns or not seeds:
        raise ValueError(f"a run needs at least one column and one seed, not {len(columns)} and {len(seeds)}")
    for column in columns:
        if len(column.weights) != steps:
            raise ValueError(f"column {column.name!r} has {len(column.weights)} weights for {steps} steps")
        for name in ("tuned", "guided"):
            if (given := getattr(column, name)) is not None and len(given) != steps:
                raise ValueError(f"column {column.name!r} has {len(given)} entries of {name} for {steps} steps")


def _noise(pipe: DiffusionPipeline, seed: int, size: int | None) -> tuple[Tensor, torch.Generator]:
    """Unit noise (1, C, h, w) of one image, and its generator, with which a stochastic scheduler goes on."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *families.latent_shape(pipe, size)), generator=generator), generator


@contextmanager
def watched(
    pipe: DiffusionPipeline, see: Callable[[Tensor, Tensor, Tensor], None], generators: list[torch.Generator]
) -> Iterator[None]:
    """Shows ``see`` every (output, timestep, x_t) on its way into scheduler.step, after classifier-free guidance.

    generators: one an image, for schedulers that draw noise where the pipeline hands them none (SD3, FLUX). The
    pipeline is silent meanwhile. Its scheduler.step and progress bar return afterwards.
    """
    step, bar = pipe.scheduler.step, getattr(pipe, "_progress_bar_config", None)
    before, draws = vars(pipe.scheduler).get("step"), "generator" in inspect.signature(step).parameters

    @functools.wraps(step)  # the pipeline looks at the signature to know whether to pass generators
    def seen(model_output: Tensor, timestep: Tensor, sample: Tensor, **options):
        see(model_output, timestep, sample)
        return step(model_output, timestep, sample, **({"generator": generators} if draws else {}) | options)

    pipe.scheduler.step = seen
    pipe._progress_bar_config = {**(bar or {}), "disable": True}
    try:
        yield
    except BaseException:
        pipe.maybe_free_model_hooks()  # the pipeline does so itself only at its end
        raise
    finally:
        del pipe.scheduler.step
        if before is not None:
            pipe.scheduler.step = before
        del pipe._progress_bar_config
        if bar is not None:
            pipe._progress_bar_config = bar


def decode(pipe: DiffusionPipeline, latents: Tensor, leader: Sequence[int], at_once: int | None = None) -> Tensor:
    """Latents (B, C, h, w), or as FLUX packs them, as images (B, 3, H, W) in [0, 1], float32 on the CPU.

    Those that are one by ``leader`` are decoded once; at_once: the most in one call of the decoder, None for all.
    """
    distinct = sorted(set(leader))
    with families.wide_decoder(pipe):
        chunks = families.for_decoder(pipe, latents[distinct]).split(at_once or len(distinct))
        decoded = [pipe.vae.decode(z, return_dict=False)[0].float() for z in chunks]
    images = torch.cat([(part / 2 + 0.5).clamp(0, 1).cpu() for part in decoded])
    return images[[distinct.index(b) for b in leader]]
