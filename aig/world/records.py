"""What was measured of every picture of a method, and the scores of them all, with estimates that are paired by seed.

A set of pictures is P prompts x S seeds, with the same seeds under every prompt and for every method. A score is its mean over the
prompts, and the jackknife leaves out one seed at a time, under all prompts at once: intervals are over seeds, for these prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from aig.measures.diversity import distances
from aig.measures.intervals import Estimate, diversity, mean

Modes = Callable[[Mapping[str, Tensor]], Tensor]  # attribute -> probabilities (N, values): the part of a reward (N,) that they explain


@dataclass(frozen=True, kw_only=True)
class Records:
    """N = P * S pictures, prompt after prompt."""

    rewards: Mapping[str, Tensor]  # name -> (N,)
    features: Tensor  # (N, D)
    told: Mapping[str, Tensor]  # attribute -> probabilities (N, values)
    covered: Tensor  # (N,) 1 if a drawing is near enough, else 0; the mean is precision

    def some(self, rows: slice) -> Records:
        """Those of these rows."""
        cut = lambda named: {name: values[rows] for name, values in named.items()}  # noqa: E731
        return Records(rewards=cut(self.rewards), features=self.features[rows], told=cut(self.told), covered=self.covered[rows])

    def save(self, path: Path) -> None:
        """Write all, half precision where that is enough, in one move."""
        tensors = {f"reward {name}": values for name, values in self.rewards.items()}
        tensors |= {f"told {name}": values.half() for name, values in self.told.items()}
        tensors |= {"features": self.features.half(), "covered": self.covered.half()}
        part = path.with_suffix(".part")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        part.replace(path)


def load(path: Path) -> Records:
    """What ``save`` wrote."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    named = lambda kind: {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}  # noqa: E731
    return Records(rewards=named("reward "), told=named("told "), features=tensors["features"], covered=tensors["covered"])


def scores(records: Records, reward: str, modes: Modes, open_attributes: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """Every score as an estimate over S seeds; ``open_attributes``: for each of the P prompts those that it leaves open."""
    prompts = len(open_attributes)
    each = lambda values: [part for part in values.unflatten(0, (prompts, -1))]  # noqa: E731  (P, S, ...)
    told = [{name: p for name, p in zip(records.told, row)} for row in zip(*(each(p) for p in records.told.values()))]
    explained = modes(records.told).float()
    confidence = torch.stack([p.amax(1) for p in records.told.values()]).mean(0)
    per_image = {
        reward: records.rewards[reward],
        "by modes": explained,
        "within modes": records.rewards[reward] - explained,
        "held-out": records.rewards["held-out"],
        "confidence": confidence,
        "precision": records.covered,
    }
    found = {name: average([mean(part) for part in each(values)]) for name, values in per_image.items()}
    found["diversity"] = average([diversity(distances(part)) for part in each(records.features)])
    found["entropy"] = average([entropy({name: row[name] for name in names}) for row, names in zip(told, open_attributes)])
    found["style entropy"] = average([entropy({"style": row["style"]}) for row in told])
    return found


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that leave out the same seeds."""
    return Estimate(sum(e.value for e in estimates) / len(estimates), torch.stack([e.left_out for e in estimates]).mean(0))


def entropy(told: Mapping[str, Tensor]) -> Estimate:
    """The normalised entropy, mean over attributes (probabilities (S, values) each), with the jackknife over S."""
    found = []
    for p in told.values():
        n, values = p.shape
        shown = F.one_hot(p.argmax(1), values).double()  # (S, values)
        total = shown.sum(0)
        shares = torch.cat([total[None] / n, (total - shown) / (n - 1)])  # (1 + S, values), of all and with each left out
        bounds = torch.tensor([min(n, values), *[min(n - 1, values)] * n], dtype=torch.float64).log()
        found.append(torch.special.entr(shares).sum(1) / bounds)
    every = torch.stack(found).mean(0)
    return Estimate(float(every[0]), every[1:])
