"""Columns: what is compared, each as one short text such as ``lora:0.5`` and as the numbers of its steps.

``base``, ``tuned`` and ``aig`` always come first; up to three more can be added. A column's text is parsed once, at the edge,
and its numbers, a ``Column``, say everything that sampling has to know and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aig.method import evaluations as plans
from aig.method import schedules
from aig.method.evaluations import Mix

MAX_EXTRA = 3  # columns beside the first three: more fit no screen
MAX_LORA_SCALE = 1.5  # a little extrapolation; more leaves the range in which the LoRA means anything
MAX_MIX = 3.0  # as far as constant mixes have been studied
MAX_NOISE = 1.0  # of CADS: beyond it nothing of the prompt is left
BLOCK = 4  # steps of CoDe between two selections
CANDIDATES = (2, 3, 4)  # of CoDe: each costs as much as a base column


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of column that can be added."""

    form: str  # of its text, a capital letter for what is to be chosen
    choices: str
    rule: str
    source: str
    cost: str  # model evaluations an image at T steps, with guidance; steps shared with another column cost nothing
    examples: tuple[str, ...]


KINDS = {
    "lora": Kind(
        form="lora:A",
        choices=f"A from 0 to {MAX_LORA_SCALE:g}",
        rule="the tuned model with its LoRA at scale A",
        source="Jena et al., arXiv 2409.06493",
        cost="2T",
        examples=("lora:0.5", "lora:0.75"),
    ),
    "kl": Kind(
        form="kl:K",
        choices="K one of the model's KL coefficients",
        rule="the model that was tuned with KL coefficient K",
        source="DRaFT+, Jena et al., arXiv 2409.06493",
        cost="2T",
        examples=("kl:0.3",),
    ),
    "aig": Kind(
        form="aig:S",
        choices="S any schedule",
        rule="AIG with a second schedule",
        source="Jena et al., arXiv 2409.06493",
        cost="up to 4T",
        examples=("aig:power_4", "aig:linear"),
    ),
    "constant": Kind(
        form="constant:W",
        choices=f"W from 0 to {MAX_MIX:g}",
        rule="the same mix (1 - W) base + W tuned at every step; W above 1 extrapolates beyond the tuned model",
        source="RLG, arXiv 2508.21016; DeRaDiff, arXiv 2601.20198",
        cost="4T",
        examples=("constant:0.5", "constant:1.5"),
    ),
    "step": Kind(
        form="step:F or step:F:unguided",
        choices="F from 0 to 1",
        rule="the base model up to progress F, then the tuned one; unguided: without classifier-free guidance from there on",
        source="ImageReFL, arXiv 2505.22569",
        cost="2T; unguided 2FT + (1 - F)T",
        examples=("step:0.6", "step:0.6:unguided"),
    ),
    "scheduled": Kind(
        form="scheduled:S",
        choices=f"S any schedule up to {MAX_LORA_SCALE:g}",
        rule="one model, whose LoRA scale follows the schedule: AIG to first order at half its price",
        source="first-order expansion of AIG in the LoRA scale",
        cost="2T",
        examples=("scheduled:power_2",),
    ),
    "cads": Kind(
        form="cads:S",
        choices=f"S from 0 to {MAX_NOISE:g}",
        rule="the tuned model, with noise of scale S on the prompt's embedding that fades out over the first steps",
        source="CADS, Sadat et al., arXiv 2310.17347",
        cost="2T",
        examples=("cads:0.1",),
    ),
    "code": Kind(
        form="code:N",
        choices=f"N from {CANDIDATES[0]} to {CANDIDATES[-1]}",
        rule=f"the base model with noise at every step, N candidates an image: every {BLOCK} steps the one goes on whose "
        "predicted image has the highest reward",
        source="CoDe, Singh et al., arXiv 2502.00968",
        cost="2NT, in a pass of its own",
        examples=("code:2",),
    ),
}
LIMITS = {"lora": MAX_LORA_SCALE, "kl": math.inf, "constant": MAX_MIX, "step": 1.0, "cads": MAX_NOISE, "code": CANDIDATES[-1]}
FORMS = ", ".join(f"{kind.form} ({kind.choices})" for kind in KINDS.values())


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column does at each of its T steps."""

    role: str  # base, tuned, aig or added
    title: str
    label: str  # the title in few letters
    about: str
    shares: tuple[float, ...]  # g_i of the tuned model
    kl: float  # the coefficient that the tuned model was trained with
    scales: tuple[float, ...]  # LoRA scale of the tuned model, which matters where its share is not 0
    guided: tuple[bool, ...]
    noise: float = 0.0  # CADS, 0 for none
    candidates: int = 1  # CoDe, 1 for every other column

    @property
    def steady(self) -> bool:
        """Whether the tuned model stays the same from step to step."""
        return len({a for a, g in zip(self.scales, self.shares) if g}) < 2


@dataclass(frozen=True)
class Extra:
    """A parsed column: its kind, its canonical text, and the number or schedule in it."""

    kind: str
    name: str
    value: float | schedules.Schedule
    unguided: bool = False


def examples(kind: str, kl: Sequence[float]) -> tuple[str, ...]:
    """Texts of a kind for a model that was tuned with these KL coefficients; the first one is what it shows anyway."""
    return KINDS[kind].examples if kind != "kl" else tuple(f"kl:{value:g}" for value in kl[1:])


def parse(text: str) -> Extra:
    """The column that ``text`` names. ValueError, one sentence with the text and the choices, when it names none."""
    if not isinstance(text, str):
        raise _refused(text)
    kind, _, rest = text.strip().lower().partition(":")
    if kind in ("aig", "scheduled"):
        schedule = schedules.parse(rest)
        if kind == "scheduled" and max(schedules.shares(schedule, 2, closed=True)) > MAX_LORA_SCALE:
            raise _refused(text)
        return Extra(kind, f"{kind}:{schedule.name}", schedule)
    word, *modes = rest.split(":", 2)
    value = schedules.number(word)
    fits = value is not None and value <= LIMITS.get(kind, -1) and (kind != "code" or value in CANDIDATES)
    if not fits or modes not in ([], ["unguided"] if kind == "step" else []):
        raise _refused(text)
    return Extra(kind, ":".join([kind, schedules.written(value), *modes]), value, bool(modes))


def title(text: str) -> str:
    """The title of the column that ``text`` names."""
    return columns([parse(text)], (1.0,), kl=0.0, scale=1.0, closed=True)[-1].title


def columns(
    extras: Sequence[Extra], shares: Sequence[float], *, kl: float, scale: float, closed: bool, about: str = ""
) -> tuple[Column, ...]:
    """All columns of a run: base, tuned, AIG and the added ones, CoDe's last, because they run last.

    shares: those of the AIG column. kl, scale: the tuned model of the run. closed: as in ``schedules.weights``. about: what
    the AIG column says of its schedule.
    """
    steps = len(shares)
    tuned = Column(
        role="tuned",
        title="Reward-tuned",
        label="tuned",
        about=f"KL {kl:g} · LoRA {scale:g}",
        shares=(1.0,) * steps,
        kl=kl,
        scales=(float(scale),) * steps,
        guided=(True,) * steps,
    )
    base = replace(tuned, role="base", title="Base", label="base", about="never tuned", shares=(0.0,) * steps)
    aig = replace(tuned, role="aig", title="AIG", label="AIG", about=about, shares=tuple(shares))
    added = (_added(extra, replace(tuned, role="added"), closed) for extra in sorted(extras, key=lambda extra: extra.kind == "code"))
    return base, tuned, aig, *added


def cost(columns: Sequence[Column], images: int, guidance: float) -> int:
    """Model evaluations of a run with these columns, exactly: rows of a batch. What has not parted yet is computed once."""
    branches, together = 2 if guidance > 1 else 1, [c for c in columns if c.candidates == 1]
    rows = sum(branches * c.candidates * len(c.shares) for c in columns if c.candidates > 1)
    leader = [0] * len(together)
    for step in zip(*(_mixes(column) for column in together)):
        rows += sum(map(plans.count, plans.evaluations(step, leader, branches)))
        leader = plans.parted(step, leader, branches)
    return rows * images


def _mixes(column: Column) -> list[Mix]:
    return [
        Mix(g, (column.kl, scale, column.steady), guided, column.noise or None)
        for g, scale, guided in zip(column.shares, column.scales, column.guided)
    ]


def _added(extra: Extra, tuned: Column, closed: bool) -> Column:
    """The tuned column changed into another one."""
    value: Any = extra.value  # a number where the kind takes no schedule
    steps = len(tuned.shares)
    if isinstance(value, schedules.Schedule):
        shares, name = schedules.shares(value, steps, closed=closed), short(value.name)
    else:
        shares, name = (), f"{value:g}"
    change = partial(replace, tuned)
    match extra.kind:
        case "lora":
            return change(title=f"LoRA scale {name}", label=f"LoRA {name}", about=f"KL {tuned.kl:g}", scales=(value,) * steps)
        case "kl":
            about = f"LoRA {tuned.scales[0]:g}"
            return change(title=f"Tuned with KL {name}", label=f"KL {name}", about=about, kl=value)
        case "aig":
            return change(title=f"AIG {name}", label="AIG 2", about="a second curve", shares=shares)
        case "constant":
            about = "the same share throughout" if value <= 1 else "extrapolation beyond tuned"
            return change(title=f"Constant mix {name}", label=f"mix {name}", about=about, shares=(value,) * steps)
        case "step":
            shares = schedules.shares(f"step_{schedules.written(value)}", steps, closed=closed)
            if not extra.unguided:
                return change(title=f"Step {name}", label=f"step {name}", about="base, then tuned", shares=shares)
            title, about = f"Step {name} unguided", "base, then tuned without guidance"
            return change(title=title, label="unguided", about=about, shares=shares, guided=tuple(g == 0 for g in shares))
        case "scheduled":
            scales = tuple(tuned.scales[0] * g for g in shares)
            if max(scales) > MAX_LORA_SCALE:
                raise ValueError(f"The column {extra.name} reaches LoRA scale {max(scales):g}; up to {MAX_LORA_SCALE:g} is allowed.")
            on = tuple(float(a > 0) for a in scales)
            return change(title=f"Scheduled LoRA {name}", label="sched.", about="one model, its LoRA fades in", shares=on, scales=scales)
        case "cads":
            return change(title=f"CADS {name}", label=f"CADS {name}", about="tuned, noisy prompt", noise=value)
        case _:
            n, off = int(value), (0.0,) * steps
            about = f"base, best of {n} every {BLOCK} steps"
            return change(title=f"CoDe {n}", label=f"CoDe {n}", about=about, shares=off, candidates=n)


def short(name: str) -> str:
    """A schedule's name, or what it is if that is long."""
    return name if len(name) <= 28 else "drawn curve"


def _refused(text: object) -> ValueError:
    shown = ascii(text[:40] if isinstance(text, str) else text)
    return ValueError(f"The column {shown[:60]} is unknown; choose {FORMS}.")
