"""Schedules: the share g of the tuned model as a pure function of progress, and their names.

Progress is 0 at pure noise and 1 at the image. ``base``, ``draft``, ``linear``, ``power_P`` and ``step_F`` are the
schedules of Annealed Importance Guidance (arXiv 2409.06493, and its reference code in NeMo-Aligner) and give the same
numbers; ``constant_W``, ``sigmoid_K_M``, ``cosine`` and ``points:`` (a drawn curve) are added here. A larger exponent
means MORE base model and so more diversity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

PRESETS = ("base", "linear", "power_2", "power_4", "step_0.6", "sigmoid_12_0.5", "cosine", "constant_0.5", "draft")
FORMS = (
    "base, draft, linear, cosine, power_P (P from 0.01 to 100), step_F (F from 0 to 1), constant_W (W from 0 to 3), "
    "sigmoid_K_M (K from 0.1 to 100, M from 0 to 1) or points:0,0;...;1,1"
)
MAX_POINTS = 64
MIN_GAP = 1e-4  # between the x of neighbouring points: keeps the slopes of the drawn curve finite

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII)  # no sign, nan, inf, underscore or foreign digit


@dataclass(frozen=True)
class Schedule:
    """A named function of progress; calling it with progress in [0, 1] gives the tuned model's share g."""

    name: str
    share: Callable[[float], float] = field(compare=False, repr=False)

    def __call__(self, progress: float) -> float:
        return self.share(progress)


def parse(text: str) -> Schedule:
    """The schedule that ``text`` names, under its canonical name (``power_2.0`` is ``power_2``).

    Shares stay in [0, 1], and in [0, 3] for ``constant_W`` (above 1 extrapolates). Raises ValueError, naming the text
    and the choices, when the text is none of them or a number is out of its range.
    """
    if not isinstance(text, str):
        raise _refused(text)
    plain = text.strip().lower()
    if plain.startswith("points:"):
        return _drawn(plain, text)
    family, *words = plain.split("_")
    numbers = tuple(_number(word, text) for word in words)
    match family, numbers:
        case "base", ():
            share = lambda u: 0.0  # noqa: E731
        case "draft", ():
            share = lambda u: 1.0  # noqa: E731
        case "linear", ():
            share = lambda u: u  # noqa: E731
        case "cosine", ():
            share = lambda u: (1 - math.cos(math.pi * u)) / 2  # noqa: E731
        case "power", (p,) if 0.01 <= p <= 100:
            share = lambda u: u**p  # noqa: E731
        case "step", (f,) if f <= 1:
            share = lambda u: float(u >= f)  # noqa: E731
        case "constant", (w,) if w <= 3:
            share = lambda u: w  # noqa: E731
        case "sigmoid", (k, m) if 0.1 <= k <= 100 and m <= 1:
            share = _sigmoid(k, m)
        case _:
            raise _refused(text)
    return Schedule("_".join([family, *map(written, numbers)]), share)


def shares(schedule: Schedule | str, steps: int, *, closed: bool = False) -> tuple[float, ...]:
    """The ``steps`` shares of a run of T = steps, of a schedule or the text of one.

    They are taken at progress i/T as in the reference code, whose last is (T-1)/T. ``closed`` takes i/(T-1) instead, which ends at 1;
    a single closed step is the end itself. Few-step samplers need it: with T = 4 the reference end of ``power_2`` gives only 0, 0.06,
    0.25 and 0.56. Raises ValueError unless steps is an integer from 1 to 1000.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1000:
        raise ValueError(f"steps must be an integer from 1 to 1000, not {_short(steps)}")
    schedule = parse(schedule) if isinstance(schedule, str) else schedule
    if closed and steps == 1:
        return (schedule(1.0),)
    return tuple(schedule(i / (steps - closed)) for i in range(steps))


def _sigmoid(k: float, m: float) -> Callable[[float], float]:
    """The logistic curve of slope k around m, stretched to go from exactly 0 to exactly 1."""
    logistic = lambda u: 1 / (1 + math.exp(-k * (u - m)))  # noqa: E731
    low, high = logistic(0.0), logistic(1.0)
    return lambda u: (logistic(u) - low) / (high - low)


def _drawn(plain: str, text: str) -> Schedule:
    """A curve through given points: monotone cubic (it never overshoots them), or straight lines with ``;linear``."""
    parts = plain.removeprefix("points:").split(";", MAX_POINTS + 1)
    straight = parts[-1] == "linear"
    if straight:
        parts.pop()
    pairs = [part.split(",") for part in parts]
    if not 2 <= len(pairs) <= MAX_POINTS or any(len(pair) != 2 for pair in pairs):
        raise _refused(text)
    points = [(_number(x, text), _number(y, text)) for x, y in pairs]
    xs, ys = zip(*points)
    if xs[0] != 0 or xs[-1] != 1 or any(b - a < MIN_GAP for a, b in zip(xs, xs[1:])) or max(ys) > 1:
        raise ValueError(
            f"the points of {_short(text)} must go from x = 0 to x = 1, each x at least {MIN_GAP} after the one before, with y from 0 to 1"
        )
    name = "points:" + ";".join(f"{written(x)},{written(y)}" for x, y in points) + ";linear" * straight
    import numpy as np

    if straight:
        return Schedule(name, lambda u: float(np.interp(u, xs, ys)))
    from scipy.interpolate import PchipInterpolator  # here, because it takes a while to import

    with np.errstate(over="ignore"):  # of slopes next to nothing
        curve = PchipInterpolator(xs, ys)
    return Schedule(name, lambda u: min(max(float(curve(u)), 0.0), 1.0))  # clipped against rounding only


def number(word: str) -> float | None:
    """The number that a word is, None unless it is one that is at least 0, written plainly."""
    word = word.strip()
    return float(word) if len(word) <= 40 and _NUMBER.fullmatch(word) else None


def written(number: float) -> str:
    """The shortest text that reads back as the same number, without a trailing ``.0``."""
    return repr(number).removesuffix(".0")


def _number(word: str, text: str) -> float:
    value = number(word)
    if value is None:
        raise _refused(text)
    return value


def _short(value: object) -> str:
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 62 else text[:60] + "..."


def _refused(text: object) -> ValueError:
    return ValueError(f"unknown schedule {_short(text)}: choose {FORMS}")
