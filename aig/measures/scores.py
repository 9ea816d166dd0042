"""Scores of the columns of a run, each against the base on the same seeds, and the sentence on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from aig.measures import intervals
from aig.measures.diversity import attribute_entropy, distances, value_shares, vendi
from aig.measures.intervals import Estimate, Interval

TOO_FEW = "Too few images to tell."
USELESS = 1.0  # a kept share whose interval is wider than this says nothing
# Fewer images give no share of diversity. In simulations the 95% interval of a share that would be shown is right in
# about 90 to 95% of the cases from N = 8 if every image loses some variety; if images lose their mode altogether, in
# 10 to 60% at N = 4 and 6, 40 to 80% at N = 8 and mostly 65 to 95% at N = 16.
ENOUGH = 8


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """How the images of a column share the values of one attribute, and the normalised entropy of that, 0 to 1."""

    shares: Mapping[str, float]
    entropy: float


@dataclass(frozen=True, kw_only=True)
class ColumnScores:
    """One column: rewards and diversity with 95% intervals; ``deltas`` are paired differences from the base column."""

    role: str  # base, tuned, aig or added
    name: str
    rewards: Mapping[str, Interval]
    diversity: Interval | None  # None for a single image
    vendi: float | None  # 1 to N: compare equal N only
    attributes: Mapping[str, Attribute]  # those that the prompt leaves open
    entropy: float | None  # mean over these
    deltas: Mapping[str, Interval]  # of every reward and "diversity"; empty for the base itself


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All columns of a run with ``n`` images each."""

    n: int
    columns: tuple[ColumnScores, ...]
    headline: str

    def to_json(self) -> dict:
        """Plain finite numbers, None where nothing is known."""
        return _plain(asdict(self))

    def table(self) -> str:
        """An aligned table, one line a column, and the headline."""
        rewards = list(self.columns[0].rewards)
        rows = [["column", *rewards, "diversity", "95% interval", "vendi", "entropy"]]
        for c in self.columns:
            d = c.diversity
            span = f"{d.low:.3f} to {d.high:.3f}" if d and self.n > 2 else "needs 3 images"
            numbers = [f"{c.rewards[name].value:+.2f}" for name in rewards]
            rows.append([c.name, *numbers, _number(d.value if d else None), span, _number(c.vendi), _number(c.entropy)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.headline])


def score(
    columns: Sequence[tuple[str, str]],
    features: Tensor,
    rewards: Mapping[str, Tensor],
    classes: Mapping[str, Tensor],
    values: Mapping[str, Sequence[str]],
    *,
    proxy: str,
) -> Scores:
    """Score C columns of N images each.

    columns: the role and the name of each, one of them the base. features (C, N, D); rewards: name -> (C, N); classes: open
    attribute -> probabilities (C, N, V); values: attribute -> the names of its V values; proxy: the reward that the model was
    tuned on. Raises ValueError when the columns differ in size, a number is not finite, or the proxy is not among the rewards.
    """
    _check(len(columns), features, rewards, classes, values)
    if proxy not in rewards:
        raise ValueError(f"The headline needs the reward {proxy!r}, which is not among {', '.join(rewards) or 'none'}.")
    n = features.shape[1]
    estimates = []
    for c in range(len(columns)):
        known = {name: intervals.mean(r[c]) for name, r in rewards.items()}
        estimates.append(known | ({"diversity": intervals.diversity(distances(features[c]))} if n > 1 else {}))
    by_role = {role: known for (role, _), known in zip(columns, estimates) if role != "added"}
    scored, base = [], by_role["base"]
    for c, ((role, name), known) in enumerate(zip(columns, estimates, strict=True)):
        shown = {
            a: Attribute(shares=dict(zip(values[a], value_shares(p[c]).tolist(), strict=True)), entropy=attribute_entropy(p[c]))
            for a, p in classes.items()
        }
        scored.append(
            ColumnScores(
                role=role,
                name=name,
                rewards={r: known[r].interval() for r in rewards},
                diversity=known["diversity"].interval() if n > 1 else None,
                vendi=vendi(features[c]) if n > 1 else None,
                attributes=shown,
                entropy=sum(a.entropy for a in shown.values()) / len(shown) if shown and n > 1 else None,
                deltas={} if role == "base" else {key: (known[key] - base[key]).interval() for key in known},
            )
        )
    return Scores(n=n, columns=tuple(scored), headline=headline(by_role, proxy))


def headline(estimates: Mapping[str, Mapping[str, Estimate]], proxy: str) -> str:
    """What the AIG column keeps of the diversity that the tuned one lost and of the reward that it won, both against the base.

    estimates: role -> score -> estimate. A share is given only where the loss or gain is sure and the interval is useful.
    """
    if not {"base", "tuned", "aig"} <= estimates.keys():
        return ""
    base, tuned, aig = (estimates[role] for role in ("base", "tuned", "aig"))
    if "diversity" not in base:
        return "Diversity needs at least two images."
    lost, won = base["diversity"] - tuned["diversity"], tuned[proxy] - base[proxy]
    enough = len(lost.left_out) >= ENOUGH
    diversity = _kept(aig["diversity"] - tuned["diversity"], lost) if enough else None
    reward = _kept(aig[proxy] - base[proxy], won)
    if diversity and reward:
        return f"AIG keeps {diversity} of the diversity that tuning lost and {reward} of the reward it won."
    if diversity:
        rest = "tuning won no reward" if _none(won) else "too few images to tell about reward"
        return f"AIG keeps {diversity} of the diversity that tuning lost; {rest}."
    if reward:
        rest = "tuning lost no diversity" if enough and _none(lost) else "too few images to tell about diversity"
        return f"AIG keeps {reward} of the reward that tuning won; {rest}."
    if enough and _none(lost):
        return f"Tuning lost no diversity{' and won no reward' if _none(won) else ''}."
    return TOO_FEW


def _kept(part: Estimate, whole: Estimate) -> str | None:
    """A share with its interval, where there surely is something to keep and the interval is not useless."""
    share = intervals.ratio(part, whole)
    if not (whole.value > 0 and share.high - share.low <= USELESS):
        return None
    low, value, high = (round(100 * x) for x in (share.low, share.value, share.high))
    return f"{value}% ({low} to {high})".replace("-", "−")


def _none(change: Estimate) -> bool:
    return change.interval().high <= 0


def _check(
    columns: int,
    features: Tensor,
    rewards: Mapping[str, Tensor],
    classes: Mapping[str, Tensor],
    values: Mapping[str, Sequence[str]],
) -> None:
    if features.ndim != 3 or len(features) != columns or 0 in features.shape:
        shape = tuple(features.shape)
        raise ValueError(f"Features must be ({columns}, N, D), as many images in every column, not {shape}.")
    size = features.shape[:2]
    expected = {name: (r, size) for name, r in rewards.items()}
    expected |= {name: (p, (*size, len(values[name]))) for name, p in classes.items()}
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            found = f"{tuple(tensor.shape)} instead of {tuple(shape)}"
            raise ValueError(f"There must be as many images in every column, but {name!r} has the shape {found}.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
