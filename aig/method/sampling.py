"""Columns x seeds: several ways to sample side by side on the same noise, as a generator of frames.

    for frame in sample(pipe, [Trajectory(name="AIG", shares=shares("power_2", 12))], settings):
        show(frame.images)

What this leaves out: the solver, the prompt and the classifier-free guidance, which stay the stock pipeline's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from aig.method import cads, families
from aig.method import code as controlled
from aig.method.code import Code
from aig.method.frames import Frame, Settings, clean_latents, decode, finite, handed, noise, watched
from aig.method.guidance import annealed
from aig.method.steps import step_of


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One way to sample: its T shares of the tuned model, and what else may differ from step to step."""

    name: str
    shares: tuple[float, ...]
    tuned: Callable | Sequence[Callable] | None = None  # the tuned denoiser, or one a step; None for the LoRA loaded in the pipeline
    guided: Sequence[bool] | None = None  # whether classifier-free guidance is on; None for always
    noise: float = 0.0  # of CADS, on the prompt's embedding


def sample(pipe: DiffusionPipeline, samplers: Sequence[Trajectory | Code], settings: Settings) -> Iterator[Frame]:
    """A frame after every step: all trajectories of one prompt in step, one image a seed, then each CoDe column by itself.

    The images of frames on the way are the predicted clean ones, those of the last frame the result. Frames have the columns that
    were begun, trajectories first. Closing the generator ends the run before the next step; the pipeline is left as it was in
    every case. Raises ValueError for empty or ill-fitting arguments, FloatingPointError when latents are not finite.
    """
    together = [s for s in samplers if isinstance(s, Trajectory)]
    alone = [s for s in samplers if isinstance(s, Code)]
    _check(together, samplers, settings)
    runs: list[partial[None]] = [partial(_side_by_side, pipe, together, settings)] if together else []
    runs += [partial(controlled.best_of, pipe, code, settings) for code in alone]
    done: Frame | None = None
    for run in runs:
        for frame in handed(torch.no_grad()(run)):
            frame = replace(frame, steps=settings.steps * len(runs))
            yield frame.beside(done) if done else frame
        done = frame.beside(done) if done else frame


def final(frames: Iterator[Frame]) -> Frame:
    """The last of the frames, with the result."""
    for frame in frames:  # noqa: B007
        pass
    return frame


def _side_by_side(pipe: DiffusionPipeline, trajectories: Sequence[Trajectory], settings: Settings, hand: Callable[[Frame], None]) -> None:
    seeds, steps, start = settings.seeds, settings.steps, time.perf_counter()
    images = [(trajectory, seed) for trajectory in trajectories for seed in seeds]
    noises = [noise(pipe, seed, settings.size) for _, seed in images]
    generators = [generator for _, generator in noises]

    def show(step: int, latents: Callable[[], Tensor]) -> None:
        leader, shape = list(ledger.leader), (len(trajectories), len(seeds))
        hand(
            Frame(
                step=step,
                steps=steps,
                rows=ledger.total,
                seconds=time.perf_counter() - start,
                decode=lambda: decode(pipe, latents(), leader, settings.budget.images).unflatten(0, shape),
            )
        )

    def see(output: Tensor, timestep: Tensor, latents: Tensor) -> None:
        if (step := 1 + step_of(pipe.scheduler, timestep)) < steps:
            show(step, partial(clean_latents, pipe.scheduler, output, timestep, latents))

    with (
        annealed(
            pipe,
            list(zip(*(trajectory.shares for trajectory, _ in images))),  # (T, trajectories * N)
            _tuned([trajectory for trajectory, _ in images], steps),
            groups=[seed for _, seed in images],
            guided=list(zip(*(trajectory.guided or [True] * steps for trajectory, _ in images))),
            texts=[cads.change(trajectory.noise, seed, steps) for trajectory, seed in images],
            rows_at_once=settings.budget.rows,
        ) as ledger,
        watched(pipe, see, generators),
    ):
        latents = pipe(
            prompt=settings.prompt,
            num_images_per_prompt=len(noises),  # the prompt is encoded once
            num_inference_steps=steps,
            guidance_scale=settings.guidance,
            latents=families.laid_out(pipe, torch.cat([unit for unit, _ in noises])),
            generator=generators,
            output_type="latent",
            **families.call_options(pipe, settings.size),
        ).images
    finite(latents)
    show(steps, lambda: latents)


def _tuned(trajectories: Sequence[Trajectory], steps: int) -> Callable | list[tuple[Callable, ...]] | None:
    """The tuned denoiser of all, or at each step those of all."""
    if len({id(trajectory.tuned) for trajectory in trajectories}) == 1 and not isinstance(trajectories[0].tuned, Sequence):
        return trajectories[0].tuned
    tables = [t.tuned if isinstance(t.tuned, Sequence) else [t.tuned] * steps for t in trajectories]
    return list(zip(*tables))


def _check(trajectories: Sequence[Trajectory], samplers: Sequence[Trajectory | Code], settings: Settings) -> None:
    if not samplers or not settings.seeds:
        raise ValueError(f"a run needs at least one column and one seed, not {len(samplers)} and {len(settings.seeds)}")
    for trajectory in trajectories:
        for name in ("shares", "tuned", "guided"):
            given = getattr(trajectory, name)
            if isinstance(given, Sequence) and len(given) != settings.steps:
                raise ValueError(f"column {trajectory.name!r} has {len(given)} entries of {name} for {settings.steps} steps")
