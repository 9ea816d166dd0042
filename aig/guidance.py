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

from aig import adapters, families, plans
from aig.plans import Part, Row

TextChange = Callable[[int, Tensor], Tensor]
ROUNDING = 1e-2  # of a timestep of 1000 that was scaled and scaled back in float32

@dataclass
class Ledger:
    """What a run cost so far (a row: one image, one prompt branch, one evaluation), and which images are still one."""

    rows: dict[str, int] = field(default_factory=lambda: {"base": 0, "tuned": 0})
    leader: list[int] = field(default_factory=list)  # (B,) for each image, the first image whose trajectory it shares

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@dataclass
class Evaluation:
    """The last evaluation of the two models, to which a second call with the same latents still belongs."""

    latents: Tensor | None = None
    leader: list[int] = field(default_factory=list)  # before it
    answer: Tensor | None = None  # of its last call


def mix(base: Tensor | None, tuned: Tensor | None, g: Tensor) -> Tensor:
    """eps = (1 - g) * eps_base + g * eps_tuned, and exactly one of the two where g is 0 or 1.

    base, tuned (rows, ...), None where no row needs that model; g (rows,), above 1 extrapolates.
    """
    if base is None or tuned is None:
        return tuned if base is None else base
    wide = torch.promote_types(base.dtype, torch.float32)  # 16 bits would round g
    g = _rowwise(g.to(wide), base)
    mixed = torch.lerp(base.to(wide), tuned.to(wide), g).to(base.dtype)
    return torch.where(g == 0, base, torch.where(g == 1, tuned, mixed))


@contextmanager
def annealed(
    pipe: DiffusionPipeline,
    weights: Sequence | Tensor,
    tuned: nn.Module | Sequence[Sequence[Callable]] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    guided: Sequence[Sequence[bool]] | None = None,
    texts: Sequence[TextChange | None] | None = None,
    rows_at_once: int | None = None,
) -> Iterator[Ledger]:
    """For the duration of the ``with``, the pipeline's denoiser mixes the base and the tuned model by ``weights``.

    weights: the T shares g_i of the steps, or (T, B) for the B images of the pipeline's batch, each its own.
    tuned:   the tuned denoiser, or (T, B) of them; None for the LoRA loaded in the pipeline (the base is then the
             denoiser without it). The prompt is encoded once, by the pipeline as it stands.
    groups:  B labels; images with equal labels have the same prompt and the same noise throughout (a generator each).
             Their trajectories are equal until their plans differ, and until then each model computes them once.
    guided:  (T, B); where false, the branch without prompt takes over the other one's prediction and is not computed.
    texts:   B functions (step, prompt embedding (L, D)) -> the embedding to use at that step; None leaves it.
    rows_at_once: the most rows that a model computes in one call, for memory's sake; None for all.
    Yields the Ledger of the run. Raises ValueError when T or B do not fit the pipeline's call or each other. One run at
    a time on a pipeline.
    """
    if rows_at_once is not None and rows_at_once < 1:
        raise ValueError(f"rows_at_once must be at least 1, not {rows_at_once}")
    denoiser = adapters.denoiser(pipe)
    several = isinstance(tuned, Sequence)
    base, one = (denoiser.forward, None) if several else adapters.pair(denoiser, tuned)
    table = _parts(_table(weights, groups), tuned if several else one, guided, texts)  # (T, B)
    images = len(table[0])
    signature, before = inspect.signature(denoiser.forward), vars(denoiser).get("forward")
    ledger = Ledger(leader=plans.first(range(images) if groups is None else groups))

    evaluation = Evaluation()

    def predict(name: str, inputs: dict, asked: list[Row | None]) -> Tensor | None:
        """The predictions (rows, ...) that are asked for, each distinct one computed once, the others arbitrary."""
        found: dict[Row, int] = {}  # where in outputs
        outputs: list[Tensor] = []
        for model in dict.fromkeys(row.tuned for row in asked if row):
            mine = sorted({row for row in asked if row and row.tuned is model}, key=lambda row: row.row)
            found |= {row: len(found) + i for i, row in enumerate(mine)}
            for some in _chunks([row.row for row in mine], rows_at_once):
                batch = _select(inputs, some, len(asked)) | {"return_dict": False}
                outputs.append((model or base)(**batch)[0])
        ledger.rows[name] += len(found)
        return _arranged(outputs, [found.get(row, 0) for row in asked]) if outputs else None

    @functools.wraps(denoiser.forward)
    def forward(*args, **kwargs):
        inputs = signature.bind(*args, **kwargs).arguments
        latents = next(iter(inputs.values()))
        step = step_of(pipe, families.scheduler_timestep(pipe, inputs["timestep"]), len(table))
        parts, branches = table[step], _branches(pipe, len(latents), images, exact=bool(guided or texts))
        # FLUX's true guidance asks twice at the same latents: with the prompt, then without it
        second = latents is evaluation.latents
        if second:
            asked = [part._replace(text=None) for part in parts]
        else:
            asked, evaluation.latents, evaluation.leader = parts, latents, ledger.leader
            inputs = _retold(inputs, step, [part.text for part in parts])
        answered = [second and not part.guided for part in parts] * branches
        asked_base, asked_tuned = (
            [None if done else row for row, done in zip(rows, answered)]
            for rows in plans.evaluations(asked, evaluation.leader, branches)
        )
        eps_base, eps_tuned = predict("base", inputs, asked_base), predict("tuned", inputs, asked_tuned)
        eps = mix(eps_base, eps_tuned, torch.tensor([part.share for part in parts] * branches))
        if any(answered):
            known = evaluation.answer
            eps = known if eps is None else torch.where(_rowwise(torch.tensor(answered), eps), known, eps)
        evaluation.answer = eps
        ledger.leader = plans.parted(parts, evaluation.leader, branches + second)
        return (eps,) if inputs.get("return_dict") is False else Transformer2DModelOutput(sample=eps)

    denoiser.forward = forward
    try:
        yield ledger
    finally:
        del denoiser.forward
        if before is not None:  # a hook had replaced it before us
            denoiser.forward = before


def step_of(pipe: DiffusionPipeline, timestep: Tensor | float, steps: int) -> int:
    """The step, 0 to steps - 1, that a scheduler's timestep belongs to; second-order schedulers come to one twice.

    Where many steps are rounded to the same timestep (Karras noise levels), the scheduler's own count tells them apart. Raises
    ValueError unless the scheduler has ``steps`` steps and this timestep is one of them.
    """
    known = pipe.scheduler.timesteps.tolist()
    if len(known) != steps:
        known = list(dict.fromkeys(known))
    if len(known) != steps:
        raise ValueError(f"there are weights for {steps} steps, but the scheduler runs {len(known)}")
    timestep = torch.as_tensor(timestep).flatten()[0].item()
    found = [i for i, t in enumerate(known) if abs(t - timestep) <= ROUNDING]
    if not found:
        raise ValueError(f"timestep {timestep} is not one of the scheduler's {steps}")
    counted = getattr(pipe.scheduler, "step_index", None) or 0
    return min(found, key=lambda i: abs(i - counted))


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
    """How many times a row of B weights repeats over the rows of this call of the denoiser."""
    possible = families.branches_in_a_call(pipe)
    if (images > 1 or exact) and rows not in [n * images for n in possible]:
        raise ValueError(f"there are weights for {images} images, but the pipeline runs {rows // possible[-1]}")
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
        shared = families.SHARED_INPUTS
        return {key: item if key in shared else _select(item, asked, rows) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_select(item, asked, rows) for item in value)
    return value


def _chunks(rows: list[int], most: int | None) -> list[list[int]]:
    """The rows in pieces of nearly equal length, none longer than ``most``."""
    pieces = 1 if most is None else -(-len(rows) // most)
    size = -(-len(rows) // pieces)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _arranged(outputs: list[Tensor], index: list[int]) -> Tensor:
    """Rows of the outputs one after the other in another order, without a copy where it is the same."""
    together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return together if index == list(range(len(together))) else together[index]


def _rowwise(values: Tensor, like: Tensor) -> Tensor:
    """Values (rows,) that broadcast over ``like`` (rows, ...), on its device."""
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1))
