"""The stage: what is right of the controls at one moment of a run, as data and as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aig.measures.scores import ENOUGH
from aig.ui.markup import escape, fill
from aig.ui.pictures import shape


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of one column, already worded: "0.267", "−0.14", "0.24 to 0.29"."""

    label: str
    value: str
    delta: str = ""  # against base
    sure: bool = False  # the difference has an interval, and that excludes 0
    note: str = ""  # its interval, or why there is none


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How one column's images divide over the values of one attribute; shares add up to 1."""

    kind: str
    label: str  # the column in few letters
    shares: Mapping[str, float]
    entropy: float  # normalised, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One grid with its scores; ``kind`` chooses the colour: base, tuned, aig or extra-1 to extra-3."""

    kind: str
    title: str
    about: str
    metrics: Sequence[Metric]
    picture: str  # data URL, "" before the first preview
    alt: str


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Diversity over the steps shown so far."""

    steps: int = 1
    shares: Sequence[float] = ()  # of the tuned model in the AIG column, at each step
    points: tuple[tuple[int, tuple[float | None, ...]], ...] = ()  # (step, diversity of every column), in order


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything right of the controls at one moment of a run."""

    state: str  # idle, waiting, running, done or stopped
    asked: Markup  # made by ``asked``
    sentence: str
    status: str
    share: float  # of the steps done, in [0, 1]
    images: int
    columns: Sequence[Grid]
    attributes: Mapping[str, Sequence[Bar]]
    notice: str = ""
    seed: int = 0  # of the first image
    trace: Trace = Trace()
    link: str = ""  # the settings of this run, as ``aig.runs.links`` writes them
    recorded: bool = False


def stage(view: Stage) -> str:
    """The whole stage; its structure does not depend on the state, so updates leave the layout in place."""
    across, down = shape(view.images)
    values = {
        "view": view,
        "trace": _drawn(view.trace, view.columns),
        "percent": f"{100 * view.share:.0f}",
        "across": across,
        "down": down,
        "flagged": _collapsed(view),
        "segments": _segments,
    }
    return str(fill("parts/stage.html", values))


def asked(prompt: str, *, seeds: str) -> Markup:
    """The line above the sentence: what was asked for."""
    words = Markup("<q>{}</q>").format(escape(prompt)) if prompt.strip() else Markup("<q>anything</q> (no prompt)")
    return Markup("{} · {}, the same in every column").format(words, escape(seeds))


_WIDE, _TALL, _INSET = 300, 84, 22  # of the trace's picture, which always has the same size


def _drawn(trace: Trace, columns: Sequence[Grid]) -> dict[str, object]:
    """The places of a trace in its picture: every column's diversity over the steps, the share g faint behind."""
    values = [value for _, point in trace.points for value in point if value is not None]
    top, last = max(1.0, math.ceil(2 * max(values, default=0)) / 2), max(1, trace.steps - 1)

    def at(progress: float, share: float) -> str:
        return f"{_INSET + progress * (_WIDE - _INSET - 6):.1f},{_TALL - 4 - share * (_TALL - 10):.1f}"

    lines = []
    for c, column in enumerate(columns):
        known = [(step, value) for step, point in trace.points for value in point[c : c + 1] if value is not None]
        places = [at((step - 1) / last, value / top) for step, value in known]
        if places:
            x, y = places[-1].split(",")
            lines.append({"kind": column.kind, "points": " ".join(places), "x": x, "y": y})
    return {
        "wide": _WIDE,
        "tall": _TALL,
        "left": _INSET,
        "right": _WIDE - 6,
        "high": 6,
        "low": _TALL - 4,
        "top": f"{top:g}",
        "shares": " ".join(at(i / last, min(1.0, share)) for i, share in enumerate(trace.shares)),
        "lines": lines,
        "spoken": _spoken(trace, columns),
    }


def _spoken(trace: Trace, columns: Sequence[Grid]) -> str:
    """The last step of a trace in words."""
    if not trace.points:
        return "no steps yet"
    step, point = trace.points[-1]
    told = ("unknown" if value is None else f"{value:.2f}" for value in point)
    each = ", ".join(f"{column.title} {value}" for column, value in zip(columns, told, strict=False))
    return f"at step {step} of {trace.steps}: {each}"


def _collapsed(view: Stage) -> str | None:
    """The attribute that tuning narrowed most, once enough images are done to tell."""
    lost = {name: bars[0].entropy - bars[1].entropy for name, bars in view.attributes.items() if len(bars) > 1}
    most = max(lost, key=lambda name: lost[name], default=None)
    telling = view.state == "done" and view.images >= ENOUGH
    return most if telling and most is not None and lost[most] > 0.1 else None


def _segments(bar: Bar) -> list[dict[str, object]]:
    """A bar's parts in the declared order of the values; the larger, the stronger the colour, and named inside if the name fits."""
    return [
        {
            "value": value,
            "fits": share * 26 > len(value),
            "share": f"{share:.3f}",
            "tint": f"{22 + 60 * share:.0f}",
            "spoken": f"{value} {share:.0%}",
        }
        for value, share in bar.shares.items()
        if share > 0.005
    ]
