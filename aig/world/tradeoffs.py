"""Tradeoffs: what tuning on a reward won and lost, for every method that is compared. Parts of stage ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from aig.adapters import fused
from aig.diversity import attribute_entropy, distances
from aig.intervals import Estimate, diversity, mean
from aig.sampling import Column, sample
from aig.schedules import parse, weights
from aig.world import data, draft
from aig.world.bench import STEPS, Bench, Part
from aig.world.portraits import ATTRIBUTES
from aig.world.quality import covered

SEEDS = tuple(range(1_000, 1_128))  # the same 128 people, without a prompt, for every tuned model
SCALES = (0.25, 0.5, 0.75, 2.0, 4.0)  # of the LoRA that was tuned without KL; above 1 is what more tuning would lead to
MIXES = (0.25, 0.5, 0.75)  # constant shares of the tuned model
SCHEDULES = ("linear", "power_2", "power_4", "step_0.6")  # of AIG, as in the paper
CLOSED = ("power_2", "power_4")  # of these also the form that ends at 1
# Methods with a strength, and how their labels begin; LoRA scales only up to 1, which is KL 0.
METHODS = {"tuning stopped early": "after ", "AIG": "AIG ", "KL": "KL ", "LoRA scale": "LoRA scale 0", "constant mix": "constant "}
COMPARED = ("entropy", "diversity", "held-out", "precision")  # at an equal reward


def tuned(bench: Bench, reward: str) -> Part:
    """What tuning on a reward did: every KL coefficient and checkpoint, LoRA scales and AIG on the run without KL."""
    modes, measured, plan = by_modes(bench, reward), {}, methods(bench, reward)
    for label, (denoiser, shares) in plan.items():
        measured[label] = measure(bench, reward, modes, pictures(bench, denoiser(), shares, SEEDS))
        yield {"step": len(measured), "steps": len(plan)}
    return {
        "table": [{"method": label, **{name: score.value for name, score in row.items()}} for label, row in measured.items()],
        "at equal reward": at_equal_reward(measured, reward),
        "last shares": {label: shares[-1] for label, (_, shares) in plan.items() if label.startswith(METHODS["AIG"])},
    }


def methods(bench: Bench, reward: str) -> dict[str, tuple[Callable[[], torch.nn.Module], tuple[float, ...]]]:
    """What is compared: label -> the tuned denoiser, made when called, and its share at each step, the rest being base."""
    model, folder = bench.model, bench.folder / "loras"
    twin = lambda kl, scale=1.0: partial(model.twin, reward, kl, scale)  # noqa: E731
    last = twin(0.0)
    checkpoints = {n: folder / f"{draft.name_of(reward, 0.0, n)}.safetensors" for n in bench.preset.checkpoints}
    shares = lambda name, **how: weights(parse(name), STEPS, **how)  # noqa: E731
    base, tuned = shares("base"), shares("draft")
    found = {"base": (last, base)}
    found |= {f"after {n} updates": (partial(fused, model.pipe.unet, path), tuned) for n, path in checkpoints.items()}
    found |= {f"KL {kl:g}": (twin(kl), tuned) for kl in model.facts.tunings[reward]}
    found |= {f"LoRA scale {scale:g}": (twin(0.0, scale), tuned) for scale in SCALES}
    found |= {f"AIG {name}": (last, shares(name)) for name in SCHEDULES}
    found |= {f"AIG {name}, ending at 1": (last, shares(name, closed=True)) for name in CLOSED}
    found |= {f"constant {w:g}": (last, shares(f"constant_{w:g}")) for w in MIXES}
    return found


def pictures(bench: Bench, denoiser: torch.nn.Module, shares: tuple[float, ...], seeds: tuple[int, ...]) -> Tensor:
    """One image (N, 3, H, W) in [0, 1] a seed, without a prompt."""
    column = Column(name="measured", weights=shares)
    batches = [seeds[i : i + 16] for i in range(0, len(seeds), 16)]
    runs = [sample(bench.model.pipe, [column], prompt="", seeds=batch, steps=STEPS, guidance=1.0, tuned=denoiser) for batch in batches]
    return torch.cat([run.images[0] for run in runs])


def by_modes(bench: Bench, reward: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The part of a reward (B,) that attributes explain, from their probabilities: a linear fit over the drawings' rewards."""
    images, labels = bench.images[:5_000], torch.as_tensor(bench.labels[:5_000]).long()
    worth = torch.cat([rewarded(bench, reward, batch) for batch in data.batches(images)])
    shown = torch.cat([torch.nn.functional.one_hot(labels[:, i], len(v)) for i, v in enumerate(ATTRIBUTES.values())], 1).double()
    fit = torch.linalg.lstsq(shown, worth.double().unsqueeze(1), driver="gelsd").solution
    return lambda told: (torch.cat([told[name] for name in ATTRIBUTES], 1).double() @ fit).squeeze(1)


@torch.no_grad()
def rewarded(bench: Bench, reward: str, pictures: Tensor) -> Tensor:
    """Rewards (B,) of pictures (B, 3, H, W) in [0, 1] without a prompt."""
    return bench.model.rewards[reward](pictures, [""] * len(pictures)).float().cpu()


def measure(bench: Bench, reward: str, modes: Callable, pictures: Tensor) -> dict[str, Estimate]:
    """Mean rewards, diversity, attribute entropy and fidelity of pictures that were drawn without a prompt."""
    features, told = bench.model.measure(pictures)
    proxy, explained = rewarded(bench, reward, pictures), modes(told).float()
    return {
        reward: mean(proxy),
        "by modes": mean(explained),
        "within modes": mean(proxy - explained),
        "held-out": mean(rewarded(bench, "held-out", pictures)),
        "diversity": diversity(distances(features)),
        "entropy": entropy(told),
        "style entropy": entropy({"style": told["style"]}),
        "confidence": mean(torch.stack([p.amax(1) for p in told.values()]).mean(0)),
        "precision": mean(covered(features, bench.drawn)),
    }


def entropy(told: Mapping[str, Tensor]) -> Estimate:
    """The normalised entropy, mean over attributes (probabilities (N, values) each), with the jackknife."""
    of = lambda kept: sum(attribute_entropy(p[kept]) for p in told.values()) / len(told)  # noqa: E731
    images = torch.arange(len(next(iter(told.values()))))
    return Estimate(of(images), torch.tensor([of(images != i) for i in images], dtype=torch.float64))


def at_equal_reward(measured: Mapping[str, Mapping[str, Estimate]], reward: str) -> list[dict]:
    """What each AIG schedule has more than every other method at its reward, with 95% intervals, paired by seed.

    The others' scores lie on straight lines between their rows from base to KL 0; nothing is said of a schedule whose reward is
    outside of a method's rewards. The interval is the jackknife's of the whole difference: its reward, the lines and all.
    """
    found = []
    for name in (label for label in measured if label.startswith(METHODS["AIG"])):
        for other in METHODS.keys() - {"AIG"}:
            line = [measured[label] for label in members(measured, other)]
            xs, x = [row[reward] for row in line], measured[name][reward]
            if not min(end.value for end in xs) <= x.value <= max(end.value for end in xs):
                continue
            for score in COMPARED:
                more = (measured[name][score] - on_lines(x, xs, [row[score] for row in line])).interval()
                row = {"method": name, "other": other, "score": score}
                found.append(row | {"more": more.value, "low": more.low, "high": more.high})
    return sorted(found, key=lambda row: (COMPARED.index(row["score"]), list(METHODS).index(row["other"])))


def on_lines(x: Estimate, xs: Sequence[Estimate], ys: Sequence[Estimate]) -> Estimate:
    """The linear interpolation of ys over xs at x, of all images and with each left out; an x beyond a line's end takes the end's y."""
    all_and_left_out = lambda e: np.array([e.value, *e.left_out.tolist()])  # noqa: E731
    points = np.stack([np.stack([all_and_left_out(a), all_and_left_out(b)]) for a, b in zip(xs, ys, strict=True)])  # (rows, 2, 1 + N)
    found = [
        np.interp(at, *points[points[:, 0, i].argsort(), :, i].T)  # in the order of their x
        for i, at in enumerate(all_and_left_out(x))
    ]
    return Estimate(float(found[0]), torch.tensor(found[1:], dtype=torch.float64))


def members(labels: Iterable[str], name: str) -> list[str]:
    """The labels of one of ``METHODS`` with a strength, between the base model and the one that was tuned without KL."""
    return [label for label in labels if label in ("base", "KL 0") or label.startswith(METHODS[name])]
