"""Annealed Importance Guidance inside a stock diffusers pipeline (Jena et al., arXiv 2409.06493).

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
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from aig.method import adapters, families, supported
from aig.method import evaluations as plans
from aig.method.evaluations import Mix, Row
from aig.method.replaced import replaced
from aig.method.rows import Answer, Call, chunks, joined, rowwise
from aig.method.steps import Clock, counted

TextChange = Callable[[int, Tensor], Tensor]
Look = Callable[[int, Tensor | None, Tensor | None], None]


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
        return next(eps for eps in (base, tuned) if eps is not None)
    wide = torch.promote_types(base.dtype, torch.float32)  # 16 bits would round g
    g = rowwise(g.to(wide), base)
    mixed = torch.lerp(base.to(wide), tuned.to(wide), g).to(base.dtype)
    return torch.where(g == 0, base, torch.where(g == 1, tuned, mixed))


@contextmanager
def annealed(
    pipe: DiffusionPipeline,
    weights: Sequence | Tensor,
    tuned: Callable | Sequence[Sequence[Callable]] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    guided: Sequence[Sequence[bool]] | None = None,
    texts: Sequence[TextChange | None] | None = None,
    rows_at_once: int | None = None,
    look: Look | None = None,
) -> Generator[Ledger]:
    """For the duration of the ``with``, the pipeline's denoiser mixes the base and the tuned model by ``weights``.

    weights: the T shares g_i of the steps, or (T, B) for the B images of the pipeline's batch, each its own.
    tuned:   the tuned denoiser, or (T, B) of them; None for the LoRA loaded in the pipeline (the base is then the
             denoiser without it). The prompt is encoded once, by the pipeline as it stands.
    groups:  B labels; images with equal labels have the same prompt and the same noise throughout (a generator each).
             Their trajectories are equal until their plans differ, and until then each model computes them once.
    guided:  (T, B); where false, the branch without prompt takes over the other one's prediction and is not computed.
    texts:   B functions (step, prompt embedding (L, D)) -> the embedding to use at that step; None leaves it.
    rows_at_once: the most rows that a model computes in one call, for memory's sake; None for all.
    look:    told both predictions of every evaluation before they are mixed: (step, base, tuned), each (rows, ...) in the pipeline's
             layout with NaN in rows that were not computed, or None where no row was.
    Yields the Ledger of the run. Raises ValueError when T or B do not fit the pipeline's call or each other, and for what
    cannot be mixed exactly, before the first step is taken. One run at a time on a pipeline.
    """
    if rows_at_once is not None and rows_at_once < 1:
        raise ValueError(f"rows_at_once must be at least 1, not {rows_at_once}")
    shares = _table(weights, groups)  # (T, B)
    denoisers = adapters.denoisers(pipe)
    if tuned is not None:
        supported.only(pipe, denoisers)
    else:  # one without a LoRA is its own tuned model
        denoisers = {name: model for name, model in denoisers.items() if adapters.lora_layers(model)} or denoisers
    ledger = Ledger(leader=plans.first(range(len(shares[0])) if groups is None else groups))
    run = _Run(pipe, ledger, ledger.leader, rows_at_once, look, exact=len(shares[0]) > 1 or bool(groups or guided or texts))
    with ExitStack() as stack:
        clock = stack.enter_context(counted(pipe, len(shares), run.stepped))
        for denoiser in denoisers.values():
            base, one = (denoiser.forward, None) if isinstance(tuned, Sequence) else adapters.pair(denoiser, tuned)
            table = _mixes(shares, tuned if isinstance(tuned, Sequence) else one, guided, texts)
            models = {id(part.tuned): part.tuned for parts in table for part in parts}.values()
            twins = [model for model in models if isinstance(model, nn.Module) and model is not denoiser]
            attention = stack.enter_context(supported.mirrored(denoiser, twins))
            stack.enter_context(replaced(denoiser, "forward", _mixing(run, clock, denoiser, base, table, twins, attention)))
        yield ledger


@dataclass
class _Run:
    """What the calls of one run share."""

    pipe: DiffusionPipeline
    ledger: Ledger
    leader: list[int]  # before the step
    rows_at_once: int | None
    look: Look | None
    exact: bool  # whether the pipeline must run as many images as there are columns of weights
    answer: Answer | None = None  # to the last call
    asked: int = 0  # rows of the last call

    def stepped(self, latents: Tensor) -> None:
        """Before the scheduler's step on all latents (B, ...)."""
        images = len(self.leader)
        if self.exact and (len(latents) != images or self.asked % images):
            counted = len(latents) if len(latents) != images else f"{self.asked} predictions at a time"
            raise ValueError(f"there are weights for {images} images, but the pipeline runs {counted}")
        self.leader = self.ledger.leader


def _mixing(
    run: _Run,
    clock: Clock,
    denoiser: nn.Module,
    base: Callable,
    table: list[list[Mix]],
    twins: list[nn.Module],
    attention: supported.Attention,
) -> Callable:
    """The denoiser's new forward."""
    plain = supported.plain(denoiser)
    names, ledger, images = list(inspect.signature(plain.forward).parameters), run.ledger, len(table[0])
    known = families.prompt_comes(run.pipe) if any(not part.guided or part.text for parts in table for part in parts) else None

    def predict(name: str, call: Call, asked: list[Row | None]) -> Answer | None:
        """The predictions that are asked for, each distinct one computed once, the others arbitrary."""
        found: dict[Row, int] = {}  # where in answers
        answers: list[Answer] = []
        for model in dict.fromkeys(row.tuned for row in asked if row):
            mine = sorted({row for row in asked if row and row.tuned is model}, key=lambda row: row.row)
            rows, done = [row.row for row in mine], sum(answer.rows for answer in answers)
            parted = chunks(rows, run.rows_at_once)
            if parted != [list(range(call.rows))] and not (call.separable and attention.rowwise):
                if run.rows_at_once is not None and run.rows_at_once < call.rows:
                    raise ValueError(f"this model's {call.rows} rows belong together: rows_at_once must be None, not {run.rows_at_once}")
                parted, rows = [None], list(range(call.rows))
            for some in parted:
                count = call.rows if some is None else len(some)
                answers.append(Answer.of((base if model is None else model)(**call.some(some)), count))
            found |= {row: done + rows.index(row.row) for row in mine}
        ledger.rows[name] += sum(answer.rows for answer in answers)
        return joined(answers).arranged([found.get(row, 0) for row in asked]) if answers else None

    @functools.wraps(plain.forward)
    def forward(*args, **kwargs):
        call = Call.of(dict(zip(names, args)) | kwargs)
        if clock.starts():
            supported.check(plain, twins)
        step, later = clock.evaluation(call.timestep)
        attention.follow()
        run.asked = call.rows
        if call.rows % images:
            return base(**call.some(None))  # the scheduler's step says how many images there are
        parts, branches = table[step], call.rows // images
        if known and later > (known == "first"):
            raise ValueError(f"{type(run.pipe).__name__} asks for a prediction beside its guidance: leave guided and texts out")
        second = bool(known and later)  # asked for the prediction without prompt, after the one with it
        asked = [part._replace(text=None) for part in parts] if second else parts
        if not second:
            call = _retold(call, step, [part.text for part in parts])
        answered = [second and not part.guided for part in parts] * branches
        asked_base, asked_tuned = (
            [None if done else row for row, done in zip(rows, answered)] for rows in plans.evaluations(asked, run.leader, branches)
        )
        eps_base, eps_tuned = predict("base", call, asked_base), predict("tuned", call, asked_tuned)
        if run.look is not None:
            run.look(step, _computed(eps_base, asked_base), _computed(eps_tuned, asked_tuned))
        eps = _mixed(eps_base, eps_tuned, torch.tensor([part.share for part in parts] * branches))
        if any(answered):
            eps = _mixed(run.answer if eps is None else eps, run.answer, torch.tensor(answered).float())
        assert eps is not None  # every row is asked of a model, or answered before
        run.answer = eps
        ledger.leader = plans.parted(parts, run.leader, branches + later)
        return eps.like(eps.tensors)

    return forward


def _mixed(base: Answer | None, tuned: Answer | None, g: Tensor) -> Answer | None:
    """``mix`` of everything that the models return."""
    if base is None or tuned is None:
        return tuned if base is None else base
    return Answer([mix(*each, g) for each in zip(base.tensors, tuned.tensors)], base.rows, base.like)


def _computed(answer: Answer | None, asked: list[Row | None]) -> Tensor | None:
    """The prediction with NaN in the rows that nobody asked for."""
    if answer is None:
        return None
    missing = torch.tensor([row is None for row in asked], device=answer.tensors[0].device)
    return answer.tensors[0].masked_fill(rowwise(missing, answer.tensors[0]), math.nan)


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


def _mixes(
    shares: list[list[float]],
    tuned: Callable | Sequence[Sequence[Callable]] | None,
    guided: Sequence[Sequence[bool]] | None,
    texts: Sequence[TextChange | None] | None,
) -> list[list[Mix]]:
    """What each of B images does at each of T steps. ValueError when the tables differ in T or B."""
    steps, images = len(shares), len(shares[0])
    tables: dict[str, Sequence[Sequence]] = {
        "tuned": tuned if isinstance(tuned, Sequence) else [[tuned] * images] * steps,
        "guided": [[True] * images] * steps if guided is None else guided,
        "texts": [[None] * images if texts is None else texts] * steps,
    }
    for name, given in tables.items():
        if len(given) != steps or any(len(row) != images for row in given):
            raise ValueError(f"{name} must fit the weights of {steps} steps and {images} images")
    return [[Mix(*each) for each in zip(*rows)] for rows in zip(shares, *tables.values())]


def _retold(call: Call, step: int, texts: list[TextChange | None]) -> Call:
    """The call with the changed prompt embeddings of this step, in the last branch, the one with the prompt."""
    if not any(texts):
        return call
    embedding = call.inputs["encoder_hidden_states"].clone()  # (rows, L, D)
    for prompted, change in zip(embedding[-len(texts) :], texts):
        if change is not None:
            prompted.copy_(change(step, prompted))
    return Call({**call.inputs, "encoder_hidden_states": embedding}, call.rows)
