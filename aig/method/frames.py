"""What every sampler is made of: its settings, the frames that it yields, and a stock pipeline's call watched from outside."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from aig.method import families
from aig.method.budget import UNLIMITED, Budget
from aig.method.replaced import replaced

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all that is sampled in a run has in common."""

    prompt: str
    seeds: Sequence[int]  # one an image
    steps: int  # T
    guidance: float  # scale of classifier-free guidance, off up to 1; for models that are distilled for it the scale that they read
    size: int | None = None  # height and width in pixels; None for those that the model was trained at
    budget: Budget = UNLIMITED  # how many rows and images are computed at once


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment of a run."""

    step: int  # 1 to steps
    steps: int
    rows: int  # model evaluations so far, one for each image and prompt branch: rows of a batch
    seconds: float
    decode: Callable[[], Tensor]

    @cached_property
    def images(self) -> Tensor:
        """(columns, N, 3, H, W) in [0, 1], float32, on the CPU: predicted clean images on the way, the result at the last step.

        They are decoded when they are first asked for.
        """
        return self.decode()

    def beside(self, done: Frame) -> Frame:
        """This moment of a second run together with the end of a first one, as one run; ``steps`` are those of both."""
        return replace(
            self,
            step=done.step + self.step,
            rows=done.rows + self.rows,
            seconds=done.seconds + self.seconds,
            decode=lambda: torch.cat([done.images, self.images]),
        )


class Stopped(Exception):
    """The run was stopped on request."""


def handed(run: Callable[[Callable[[Item], None]], Result]) -> Generator[Item, None, Result]:
    """A generator of what ``run(hand)`` hands over one by one, as ``hand(item)``; its value is what ``run`` returns.

    A pipeline's call can't be suspended, so ``run`` works in a thread of its own, but only while the next item is awaited: the two
    never run at once. Closing the generator makes the ``hand`` at which it stands raise Stopped, and waits for the end.
    """
    given: list[Item] = []
    end: list[Result | BaseException] = []
    asked, answered, closed = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def hand(item: Item) -> None:
        if threading.current_thread() is not thread:
            raise RuntimeError("two runs use one pipeline at once")
        given.append(item)
        answered.release()
        asked.acquire()
        if closed.is_set():
            raise Stopped

    def work() -> None:
        asked.acquire()
        try:
            if closed.is_set():
                raise Stopped
            end.append(run(hand))
        except BaseException as failure:  # raised again in the thread that asks
            end.append(failure)
        answered.release()

    thread = threading.Thread(target=copy_context().run, args=(work,), name="sampling", daemon=True)
    thread.start()
    try:
        while True:
            asked.release()
            answered.acquire()
            if end:
                break
            yield given.pop()
    finally:
        closed.set()
        asked.release()
        thread.join()
    if isinstance(end[0], BaseException):
        raise end[0]
    return end[0]


def noise(pipe: DiffusionPipeline, seed: int, size: int | None = None) -> tuple[Tensor, torch.Generator]:
    """Unit noise (1, C, h, w) of one image, float32 on the CPU, and its generator, with which a stochastic scheduler goes on."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *families.latent_shape(pipe, size)), generator=generator), generator


def initial_latents(pipe: DiffusionPipeline, seeds: Sequence[int], size: int | None = None) -> Tensor:
    """Unit noise (N, C, h, w), float32 on the CPU; image k depends on seed k alone, not on how many there are."""
    return torch.cat([noise(pipe, seed, size)[0] for seed in seeds])


def finite(latents: Tensor) -> None:
    """FloatingPointError unless all numbers are finite."""
    if not torch.isfinite(latents).all():
        raise FloatingPointError("the final latents are not finite: a weight or the guidance scale is too large")


def clean_latents(scheduler: SchedulerMixin, output: Tensor, timestep: Tensor | float, latents: Tensor) -> Tensor:
    """The clean latents x0 that a model output predicts at x_t; all (B, C, h, w).

    Covers eps-, v- and x0-prediction of schedulers that keep x_t at unit variance (DDIM, DPM-Solver) or scale it up
    (Euler, Heun), and flow velocities. Raises ValueError for any other prediction type.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    sigmas, index = getattr(scheduler, "sigmas", None), scheduler.timesteps.tolist().index(float(timestep))
    if kind == "flow_prediction" or scheduler.config.get("use_flow_sigmas"):  # x_t = (1 - sigma) x0 + sigma noise
        return latents - scheduler.sigmas[index].to(latents) * output
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


@contextmanager
def watched(pipe: DiffusionPipeline, see: Callable[[Tensor, Tensor, Tensor], None], generators: list[torch.Generator]) -> Generator[None]:
    """Shows ``see`` every (output, timestep, x_t) on its way into scheduler.step, after classifier-free guidance.

    generators: one an image, for schedulers that draw noise where the pipeline hands them none (SD3, FLUX). The
    pipeline is silent meanwhile. Its scheduler.step and progress bar return afterwards.
    """
    step = pipe.scheduler.step
    draws = "generator" in inspect.signature(step).parameters

    @functools.wraps(step)  # the pipeline looks at the signature to know whether to pass generators
    def seen(model_output: Tensor, timestep: Tensor, sample: Tensor, **options):
        see(model_output, timestep, sample)
        return step(model_output, timestep, sample, **({"generator": generators} if draws else {}) | options)

    bar = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    with replaced(pipe.scheduler, "step", seen), replaced(pipe, "_progress_bar_config", bar):
        try:
            yield
        except BaseException:
            pipe.maybe_free_model_hooks()  # the pipeline does so itself only at its end
            raise


@torch.no_grad()
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
