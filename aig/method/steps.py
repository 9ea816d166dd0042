"""Which step a run is in: counted by what the scheduler does, because pipelines scale and name timesteps as they like.

A step's share holds from the step's own time until the next one's. Schedulers that evaluate more than once a step differ in where:
Heun at the next step's time, KDPM2 between the two, PNDM (its Runge-Kutta beginning) at both.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

ROUNDING = 1e-2  # of a timestep of 1000 in 16 or 32 bits


class OneTooMany(ValueError):
    """A number of steps of which trailing spacing makes one more, from a timestep of -1."""


def steps_of(scheduler: SchedulerMixin) -> list[int]:
    """The step, from 0, that each of the scheduler's n timesteps belongs to; ValueError where that is not known.

    OneTooMany where stock schedulers step from -1, which is the noisiest of all times to some of them.
    """
    if "stage_index" in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} samples in stages, each with steps of its own: it is not supported")
    times = scheduler.timesteps.tolist()
    n, steps = len(times), getattr(scheduler, "num_inference_steps", None) or len(times)
    if scheduler.config.get("timestep_spacing") == "trailing" and times[-1] < 0:
        asked = steps - (n == steps)  # some count the steps that they made
        raise OneTooMany(
            f"{type(scheduler).__name__} with trailing spacing makes {asked + 1} steps of {asked}, the last of them from timestep -1: "
            f"choose {beside(scheduler.config.num_train_timesteps, asked)} steps"
        )
    if n == 2 * steps - 1:  # every step but the last is evaluated twice: Heun at the next one's time, KDPM2 in the middle
        early = int(times[1::2] == times[2::2] and not hasattr(scheduler, "sigmas_interpol"))
        return [(i + early) // 2 for i in range(n)]
    if n == steps + 1:  # PNDM evaluates the second step twice; others end with a time that is never evaluated
        second = times[1:2] == times[2:3]
        return [i - (i > 1) if second else min(i, steps - 1) for i in range(n)]
    if n == steps + 9:  # PNDM begins with three Runge-Kutta steps of four evaluations
        return [min((i + 1) // 4, 3) for i in range(13)] + list(range(4, steps))
    if n == steps:
        return list(range(n))
    kind = type(scheduler).__name__
    raise ValueError(f"{kind} has {n} timesteps for {steps} steps, in an order that is not known: choose another scheduler")


def beside(times: int, steps: int) -> int:
    """The number of steps nearest to this one of which trailing spacing makes no other one: it divides ``times`` by the quotient of
    the two, and 1000 / (1000 / 61) is rounded to a little more than 61."""
    near = sorted(range(1, 2 * steps + 2), key=lambda n: abs(n - steps))  # the smaller one first
    return next(n for n in near if math.ceil(times / (times / n)) == n)


def step_of(scheduler: SchedulerMixin, timestep: Tensor | float) -> int:
    """The step of one of the scheduler's own timesteps; where several are equal, the one that its own count is nearest to."""
    t, counted = _first(timestep), getattr(scheduler, "step_index", None) or 0
    found = [i for i, time in enumerate(scheduler.timesteps.tolist()) if abs(time - t) <= ROUNDING]
    if not found:
        raise ValueError(f"timestep {t} is not one of the scheduler's {len(scheduler.timesteps)}")
    return steps_of(scheduler)[min(found, key=lambda i: abs(i - counted))]


class Clock:
    """The place of a run in its scheduler's timesteps, and how often the denoiser was called there."""

    def __init__(self, pipe: DiffusionPipeline, steps: int) -> None:
        self.pipe, self.scheduler, self.steps = pipe, pipe.scheduler, steps
        self.times = self.told = self.given = None  # times: of this run; told: to scale_model_input; given: to the denoiser
        self.place = self.calls = self.copies = self.sampled = 0

    def starts(self) -> bool:
        """Whether the next call of the denoiser is the first of a run."""
        return self.times is not self.scheduler.timesteps

    def evaluation(self, given: Tensor | float | None) -> tuple[int, int]:
        """(step, how many calls it has had before) of a call of the denoiser, which is given this timestep.

        Raises ValueError unless the scheduler has ``steps`` steps and makes each of them after its evaluations.
        """
        if self.pipe.scheduler is not self.scheduler:
            raise ValueError("the pipeline's scheduler was replaced inside annealed(): replace it before")
        times = None if given is None else set(torch.as_tensor(given).flatten().tolist())
        if self.starts():
            self._begin()
        elif self.calls and times != self.given or self.copies > self.sampled:
            raise ValueError(
                f"{type(self.pipe).__name__} goes on to another timestep without a step of its scheduler, so its steps cannot be counted: "
                "it is not supported"
            )
        if self.place >= len(self.plan):
            raise ValueError(f"{type(self.pipe).__name__} goes on after its scheduler's last step: it is not supported")
        self.calls, self.given = self.calls + 1, times
        return self.plan[self.place], self.calls - 1

    def _begin(self) -> None:
        self.times, self.plan = self.scheduler.timesteps, steps_of(self.scheduler)
        if 1 + self.plan[-1] != self.steps:
            raise ValueError(f"there are weights for {self.steps} steps, but the scheduler runs {1 + self.plan[-1]}")
        begins = (getattr(self.scheduler, name, None) or 0 for name in ("begin_index", "step_index"))  # a second denoiser begins later
        self.place, self.calls, self.copies, self.sampled = max(begins), 0, 0, 0
        if self.told in (times := self.times.tolist()):  # image to image begins later, and some schedulers don't know
            self.place = max(self.place, times.index(self.told))

    def copy_steps(self, **given: object) -> None:
        """A copy of the scheduler makes a step."""
        self.copies += 1

    def step(self, timestep: Tensor | float) -> None:
        """The scheduler goes from this timestep to the next."""
        t = _first(timestep)
        if self.times is not None and not (self.place < len(self.times) and abs(self.times[self.place].item() - t) <= ROUNDING):
            raise ValueError(
                f"{type(self.pipe).__name__} steps from timestep {t:g} where the scheduler's next is another, so its steps cannot be "
                "counted: it is not supported"
            )
        self.place, self.calls, self.sampled = self.place + 1, 0, self.sampled + 1


@contextmanager
def counted(pipe: DiffusionPipeline, steps: int, sees: Callable[[Tensor], None] = lambda sample: None) -> Generator[Clock]:
    """The clock of the pipeline's runs; before each of the scheduler's steps ``sees`` gets the latents (B, ...)."""
    clock, scheduler = Clock(pipe, steps), pipe.scheduler

    def stepped(sample: Tensor, timestep: Tensor | float, **others: object) -> None:
        sees(sample)
        clock.step(timestep)

    def told(timestep: Tensor | float | None = None, **others: object) -> None:
        clock.told = None if timestep is None else _first(timestep)

    seen = {"step": _Seen(scheduler, "step", stepped, clock.copy_steps)}
    if hasattr(scheduler, "scale_model_input"):
        seen["scale_model_input"] = _Seen(scheduler, "scale_model_input", told, lambda **given: None)
    before = {name: vars(scheduler)[name] for name in seen if name in vars(scheduler)}
    vars(scheduler).update(seen)
    try:
        yield clock
    finally:
        for name in seen:
            del vars(scheduler)[name]
        vars(scheduler).update(before)


class _Seen:
    """A scheduler's method, whose arguments are seen first. Pipelines copy schedulers: a copy's method moves that copy."""

    def __init__(self, scheduler: SchedulerMixin, name: str, sees: Callable, sees_copies: Callable) -> None:
        self.scheduler, self.name, self.sees, self.sees_copies = scheduler, name, sees, sees_copies
        self.method = getattr(scheduler, name)
        self.signature = inspect.signature(self.method)
        functools.update_wrapper(self, self.method)  # pipelines look at the signature

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.sees(**self.signature.bind(*args, **kwargs).arguments)
        return self.method(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> _Seen:
        copied = memo.get(id(self.scheduler))
        if copied is None:  # not the scheduler is copied, but its state
            return self
        new = _Seen.__new__(_Seen)
        vars(new).update(vars(self), scheduler=copied, sees=self.sees_copies, method=getattr(type(copied), self.name).__get__(copied))
        return new


def _first(timestep: Tensor | float) -> float:
    return float(torch.as_tensor(timestep).flatten()[0])
