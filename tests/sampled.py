"""Sampling in one call, for tests that want the result and not the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from diffusers import DiffusionPipeline

from aig.method.frames import Frame, Settings
from aig.method.sampling import Trajectory, final, sample


def frames(pipe: DiffusionPipeline, samplers: Sequence, *, tuned: Callable | None = None, **settings: object) -> Iterator[Frame]:
    """What ``sample`` yields; ``tuned`` is the tuned denoiser of the trajectories that have none."""
    given = [dataclasses.replace(s, tuned=tuned) if isinstance(s, Trajectory) and s.tuned is None else s for s in samplers]
    return sample(pipe, given, Settings(**settings))


def result(pipe: DiffusionPipeline, samplers: Sequence, *, tuned: Callable | None = None, **settings: object) -> Frame:
    """The last frame."""
    return final(frames(pipe, samplers, tuned=tuned, **settings))
