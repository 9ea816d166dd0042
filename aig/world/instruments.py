"""What the measuring instruments are worth: autoencoder, classifier and rewards, on held-out drawings. A part of stage ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aig.measures.diversity import distances, mean_pairwise
from aig.portraits.light import MOST_LIGHT, lit
from aig.portraits.population import ATTRIBUTES
from aig.world import autoencoder, data, preference
from aig.world.bench import Bench, Measuring

LIGHT = 1.0  # at which the rewards' answer to light is measured: the most that ``preference`` likes
ATTACKED = 64  # drawings


def measure(bench: Bench) -> Measuring:
    """Everything that is measured of them; yields progress."""
    images, labels = bench.images[bench.held], torch.as_tensor(bench.labels[bench.held]).long()
    drawn = torch.cat(list(data.batches(images)))
    rng = torch.Generator().manual_seed(95)
    shone_on = lit(drawn, MOST_LIGHT * torch.rand(len(drawn), generator=rng))
    judges: Mapping[str, Any] = bench.model.rewards  # which are modules with a raw scalar here
    steps = 3 + len(judges)
    yield {"step": 0, "steps": steps}
    found = {"autoencoder PSNR (dB)": autoencoder.evaluate(bench.model.pipe.vae, images)}
    yield {"step": 1, "steps": steps}
    plain, moved = told(bench, drawn), told(bench, shone_on)
    found["ruler accuracy"] = {name: accuracy(plain[1][name], labels[:, i]) for i, name in enumerate(ATTRIBUTES)}
    found["ruler accuracy, lit"] = {name: accuracy(moved[1][name], labels[:, i]) for i, name in enumerate(ATTRIBUTES)}
    found["light moves features"] = own_distance(plain[0], moved[0]) / float(mean_pairwise(distances(plain[0])))
    yield {"step": 2, "steps": steps}
    pairs = {name: preference.pair_accuracy(judges[name], bench.preset, name) for name in preference.FITS}
    yield {"step": 3, "steps": steps}
    rewards = {}
    shone_on = lit(drawn, torch.full((len(drawn),), LIGHT))
    for step, (name, reward) in enumerate(judges.items(), 4):
        rewards[name] = {
            "rise under attack": preference.robustness(reward, images[:ATTACKED]),
            "variance between modes": between_modes(judged(reward, drawn, finish=True), labels),
            "rise by light": light_by_attribute(judged(reward, shone_on) - judged(reward, drawn), labels),
        }
        yield {"step": step, "steps": steps}
    return found | {"reward pair accuracy and ceiling": pairs, "rewards": rewards}


def told(bench: Bench, pictures: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Features and class probabilities of pictures (N, 3, H, W)."""
    features, probabilities = zip(*(bench.model.measure(batch) for batch in pictures.split(250)))
    return torch.cat(features), {name: torch.cat([p[name] for p in probabilities]) for name in ATTRIBUTES}


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(1) == labels).float().mean())


def own_distance(a: Tensor, b: Tensor) -> float:
    """Mean cosine distance of features (N, D) of the same drawings."""
    return float((1 - F.cosine_similarity(a.double(), b.double())).mean())


@torch.no_grad()
def judged(reward, pictures: Tensor, *, finish: bool = False) -> Tensor:
    """Rewards (N,) of pictures without a prompt, on request finished at random as annotators see them."""
    rng, found = torch.Generator().manual_seed(94), []
    for batch in pictures.split(250):
        shown = preference.finished(batch, preference.finishes(len(batch), rng), rng) if finish else batch
        found.append(reward(shown, [""] * len(batch)).float().cpu())
    return torch.cat(found)


def between_modes(values: Tensor, labels: Tensor) -> float:
    """The share of the variance of values (N,) that the attributes (N, A) explain, by a linear fit; the rest lies within modes."""
    shown = torch.cat([F.one_hot(labels[:, i], len(v)) for i, v in enumerate(ATTRIBUTES.values())], 1).double()
    y = (values - values.mean()).double()
    fit = torch.linalg.lstsq(shown, y.unsqueeze(1), driver="gelsd").solution
    return float(1 - (y - (shown @ fit).squeeze(1)).square().sum() / y.square().sum())


def light_by_attribute(rise: Tensor, labels: Tensor) -> dict[str, float]:
    """The mean rise (N,) of a reward by light, and for each attribute the largest difference between the means of its values, which would
    be 0 if light were worth the same in every portrait."""
    spread = {}
    for i, (name, values) in enumerate(ATTRIBUTES.items()):
        means = [float(rise[labels[:, i] == v].mean()) for v in range(len(values)) if (labels[:, i] == v).any()]
        spread[name] = max(means) - min(means)
    return {"mean": float(rise.mean())} | spread
