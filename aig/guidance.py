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
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from aig import adapters, plans
from aig.plans import Part, Row

TextChange = Callable[[int, Tensor], Tensor]

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
    tuned: nn.Module | Sequence[Sequence[Callable]] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    guided: Sequence[Sequence[bool]] | None = None,
    texts: Sequence[TextChange | None] | None = None,
) -> Iterator[Ledger]:
    """For the duration of the ``with``, the pipeline's denoiser mixes the base and the tuned model by ``weights``.

    weights: the T shares g_i of the steps, or (T, B) for the B images of the pipeline's batch, each its own.
    tuned:   the tuned denoiser, or (T, B) of them; None for the LoRA loaded in the pipeline (the base is then the
             denoiser without it). The prompt is encoded once, by the pipeline as it stands.
    groups:  B labels; images with equal labels have the same prompt and the same noise throughout (a generator each).
             Their trajectories are equal until their plans differ, and until then each model computes them once.
    guided:  (T, B); where false, the branch without prompt takes over the other one's prediction and is not computed.
    texts:   B functions (step, prompt embedding (L, D)) -> the embedding to use at that step; None leaves it.
    Yields the Ledger of the run. Raises ValueError when T or B do not fit the pipeline's call or each other. One run at
    a time on a pipeline.
    """
    denoiser = adapters.denoiser(pipe)
    several = isinstance(tuned, Sequence)
    base, one = (denoiser.forward, None) if several else adapters.pair(denoiser, tuned)
    table = _parts(_table(weights, groups), tuned if several else one, guided, texts)  # (T, B)
    images = len(table[0])
    signature, before = inspect.signature(denoiser.forward), vars(denoiser).get("forward")
    ledger = Ledger(leader=plans.first(range(images) if groups is None else groups))

    def predict(name: str, inputs: dict, asked: list[Row | None]) -> Tensor | None:
        """The predictions (rows, ...) that are asked for, each distinct one computed once, the others arbitrary."""
        outputs: dict[Row, Tensor] = {}
        for model in dict.fromkeys(row.tuned for row in asked if row):
            mine = sorted({row for row in asked if row and row.tuned is model}, key=lambda row: row.row)
            batch = _select(inputs, [row.row for row in mine], len(asked)) | {"return_dict": False}
            outputs |= zip(mine, (model or base)(**batch)[0])
        ledger.rows[name] += len(outputs)
        any_ = next(iter(outputs.values()), None)
        return torch.stack([outputs.get(row, any_) for row in asked]) if outputs else None

    @functools.wraps(denoiser.forward)
    def forward(*args, **kwargs):
        inputs = signature.bind(*args, **kwargs).arguments
        rows = len(next(iter(inputs.values())))  # classifier-free guidance lays them out as [uncond B, cond B]
        step = step_of(pipe, inputs["timestep"], len(table))
        parts, branches = table[step], _branches(pipe, rows, images, exact=bool(guided or texts))
        asked_base, asked_tuned = plans.evaluations(parts, ledger.leader, branches)
        inputs = _retold(inputs, step, [part.text for part in parts])
        eps_base, eps_tuned = predict("base", inputs, asked_base), predict("tuned", inputs, asked_tuned)
        eps = mix(eps_base, eps_tuned, torch.tensor([part.share for part in parts] * branches))
        ledger.leader = plans.parted(parts, ledger.leader, branches)
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


def _parts(
    shares: list[list[float]],
    tuned: Callable | Sequence[Sequence[Callable]],
    guided: Sequence[Sequence[bool]] | None,
    texts: Sequence[TextChange | None] | None,
) -> list[list[Part]]:
    """What each of B images does at each of T steps. ValueError when the tables differ in T or B."""
    steps, images = len(shares), len(shares[0])
    tuned = tuned if isinstance(tuned, Sequence) else [[tuned] * images] * steps
    guided = [[True] * images] * steps if guided is None else guided
    texts = [[None] * images if texts is None else texts] * steps
    for name, given in (("tuned", tuned), ("guided", guided), ("texts", texts)):
        if len(given) != steps or any(len(row) != images for row in given):
            raise ValueError(f"{name} must fit the weights of {steps} steps and {images} images")
    return [[Part(*each) for each in zip(*rows)] for rows in zip(shares, tuned, guided, texts)]


def _branches(pipe: DiffusionPipeline, rows: int, images: int, *, exact: bool) -> int:
    """How many times a row of B weights repeats over the rows of this evaluation."""
    expected = 1 + bool(getattr(pipe, "do_classifier_free_guidance", False))
    if (images > 1 or exact) and rows != expected * images:
        raise ValueError(f"there are weights for {images} images, but the pipeline runs {rows // expected}")
    return rows // images


def _retold(inputs: dict, step: int, texts: list[TextChange | None]) -> dict:
    """The inputs with the changed prompt embeddings of this step, in the last branch, the one with the prompt."""
    if not any(texts):
        return inputs
    embedding = inputs["encoder_hidden_states"].clone()  # (rows, L, D)
    for prompted, change in zip(embedding[-len(texts) :], texts):
        if change is not None:
            prompted.copy_(change(step, prompted))
    return inputs | {"encoder_hidden_states": embedding}


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
