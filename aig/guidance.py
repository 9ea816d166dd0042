"""Annealed Importance Guidance inside any diffusers pipeline (Jena et al., arXiv 2409.06493).

    with annealed(pipe, weights):
        images = pipe("a portrait").images

At step i the denoiser answers with

    eps = (1 - g_i) * eps_base + g_i * eps_tuned,    g rising from 0 to 1:

early steps, which decide the layout, belong to the diverse base model and late ones to the tuned model. The mix is
linear, so it is the same for eps-, v-, x0-prediction and flow velocities, and commutes with classifier-free guidance.
It is guidance, not an exact sampler of p_base^(1-g) * p_tuned^g. A model whose share is 0 is never evaluated.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from aig import adapters


@dataclass
class Ledger:
    """What a run cost so far (a row: one image, one prompt branch, one evaluation), and which images are still one."""

    rows: dict[str, int] = field(default_factory=lambda: {"base": 0, "tuned": 0})
    leader: list[int] = field(default_factory=list)  # (B,) for each image, the first image whose trajectory it shares

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def mix(base: Tensor | None, tuned: Tensor | None, g: Tensor) -> Tensor:
    """eps = (1 - g) * eps_base + g * eps_tuned, and exactly one of the two where g is 0 or 1.

    base, tuned (rows, ...), None where no row needs that model; g (rows,), above 1 extrapolates.
    """
    if base is None or tuned is None:
        return tuned if base is None else base
    g = g.to(base).view(-1, *[1] * (base.ndim - 1))
    return torch.where(g == 0, base, torch.where(g == 1, tuned, torch.lerp(base, tuned, g)))


@contextmanager
def annealed(
    pipe: DiffusionPipeline,
    weights: Sequence | Tensor,
    tuned: nn.Module | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
) -> Iterator[Ledger]:
    """For the duration of the ``with``, the pipeline's denoiser mixes the base and the tuned model by ``weights``.

    weights: the T shares g_i of the steps, or (T, B) for the B images of the pipeline's batch, each its own.
    tuned:   the tuned denoiser; None for the LoRA loaded in the pipeline (the base is then the denoiser without it).
             The prompt is encoded once, by the pipeline as it stands.
    groups:  B labels; images with equal labels have the same prompt and the same noise throughout (a generator each).
             Their trajectories are equal until their weights differ, and until then each model computes them once.
    Yields the Ledger of the run. Raises ValueError when T or B do not fit the pipeline's call. One run at a time
    on a pipeline.
    """
    table = _table(weights, groups)  # (T, B)
    images = len(table[0])
    denoiser = adapters.denoiser(pipe)
    models = dict(zip(("base", "tuned"), adapters.pair(denoiser, tuned)))
    signature, before = inspect.signature(denoiser.forward), vars(denoiser).get("forward")
    ledger = Ledger(leader=_leaders(range(images) if groups is None else groups))

    def predict(name: str, inputs: dict, wanted: list[bool]) -> Tensor | None:
        """One model's output (rows, ...): every distinct row that is wanted once, the others arbitrary."""
        leader = [c * images + b for c in range(len(wanted) // images) for b in ledger.leader]
        asked = sorted({row for row, wants in zip(leader, wanted) if wants})
        if not asked:
            return None
        ledger.rows[name] += len(asked)
        output = models[name](**_select(inputs, asked, len(wanted)) | {"return_dict": False})[0]
        place = {row: i for i, row in enumerate(asked)}
        return output[[place.get(row, 0) for row in leader]]

    @functools.wraps(denoiser.forward)
    def forward(*args, **kwargs):
        inputs = signature.bind(*args, **kwargs).arguments
        rows = len(next(iter(inputs.values())))  # classifier-free guidance lays them out as [uncond B, cond B]
        g = table[step_of(pipe, inputs["timestep"], len(table))]
        share = g * _branches(pipe, rows, images)
        eps_base = predict("base", inputs, [s != 1 for s in share])
        eps_tuned = predict("tuned", inputs, [s != 0 for s in share])
        eps = mix(eps_base, eps_tuned, torch.tensor(share))
        ledger.leader = _leaders(zip(ledger.leader, g))  # who was one and had the same share stays one
        return (eps,) if inputs.get("return_dict") is False else Transformer2DModelOutput(sample=eps)

    denoiser.forward = forward
    try:
        yield ledger
    finally:
        del denoiser.forward
        if before is not None:  # a hook had replaced it before us
            denoiser.forward = before


def step_of(pipe: DiffusionPipeline, timestep: Tensor | float, steps: int) -> int:
    """The step, 0 to steps - 1, that a timestep belongs to; second-order schedulers come to a timestep twice.

    Raises ValueError unless the scheduler has ``steps`` different timesteps and this is one of them.
    """
    known = list(dict.fromkeys(pipe.scheduler.timesteps.tolist()))
    if len(known) != steps:
        raise ValueError(f"there are weights for {steps} steps, but the scheduler runs {len(known)}")
    timestep = torch.as_tensor(timestep).flatten()[0].item()
    if timestep not in known:
        raise ValueError(f"timestep {timestep} is not one of the scheduler's {steps}")
    return known.index(timestep)


def _table(weights: Sequence | Tensor, groups: Sequence | None) -> list[list[float]]:
    """The weights as T lists of B floats; B is 1 when all images share them and none are grouped."""
    table = [row.tolist() if hasattr(row, "tolist") else row for row in weights]
    if not any(isinstance(row, (list, tuple)) for row in table):
        table = [[g] * (1 if groups is None else len(groups)) for g in table]
    widths = {len(row) if isinstance(row, (list, tuple)) else 0 for row in table}
    if len(widths) != 1 or 0 in widths or groups is not None and widths != {len(groups)}:
        expected = "" if groups is None else f" with B = {len(groups)}, as many as groups"
        raise ValueError(f"weights must be T or T x B numbers{expected}, not {len(table)} rows of {sorted(widths)}")
    table = [[float(g) for g in row] for row in table]
    if bad := [g for row in table for g in row if not math.isfinite(g)]:
        raise ValueError(f"weights must be finite numbers, not {bad[0]}")
    return table


def _branches(pipe: DiffusionPipeline, rows: int, images: int) -> int:
    """How many times a row of B weights repeats over the rows of this evaluation."""
    expected = 1 + bool(getattr(pipe, "do_classifier_free_guidance", False))
    if images > 1 and rows != expected * images:
        raise ValueError(f"there are weights for {images} images, but the pipeline runs {rows // expected}")
    return rows // images


def _leaders(labels: Iterable[Hashable]) -> list[int]:
    """For each label the index of its first occurrence."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(label, b) for b, label in enumerate(labels)]


def _select(value: object, asked: list[int], rows: int) -> object:
    """The asked rows of every tensor that has one entry a row, inside dicts, lists and tuples too."""
    if len(asked) == rows:
        return value
    if isinstance(value, Tensor):
        return value[asked] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {key: _select(item, asked, rows) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_select(item, asked, rows) for item in value)
    return value
