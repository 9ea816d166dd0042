"""Weights of the drawings in training, such that samples, and not what was trained on, divide as the population does.

A small denoiser stays unsure for longer than it should of what is small or rare, and what it is unsure of fades: samples without
a prompt show fewer glasses and smiles than the drawings. So before each of its last cycles the denoiser draws samples, the
ruler says what they show, and every drawing's weight is divided by how much too often its like was sampled. Captions name what
they named before, so this changes what follows from a caption only where the caption leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from aig.measures.diversity import value_shares
from aig.portraits import serving
from aig.portraits.population import ATTRIBUTES
from aig.world.bench import draw

BATCH = 40
STRENGTH = 10.0  # of the prior that nothing is to be corrected, in samples
GAIN = 0.5  # samples answer with more than what is asked of them: what is likelier is also drawn more surely
MOST = 3.0  # bound of the weights, and one over it, before they are divided by their mean


def corrected(weights: Tensor, labels: Tensor, pipe: StableDiffusionPipeline, *, seeds: range, ruler: Path) -> Tensor:
    """The drawings' next weights (N,), mean 1: the present ones (N,) over the ``density_ratio`` to the power ``GAIN``.

    labels: the drawings' attribute values (N, attributes); pipe draws the samples; seeds: one a sample; ruler: the folder of the
    trained ruler.
    """
    measure = serving.load_ruler(ruler)
    pipe.set_progress_bar_config(disable=True)
    told = []
    for chunk in (seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)):
        told.append(measure(draw(pipe, [""] * len(chunk), chunk, guidance=1.0))[1])
    shares = {name: value_shares(torch.cat([batch[name] for batch in told])) for name in ATTRIBUTES}
    weights = (weights / density_ratio(labels, shares, len(seeds)) ** GAIN).clamp(1 / MOST, MOST)
    return weights / weights.mean()


def density_ratio(labels: Tensor, shares: Mapping[str, Tensor], samples: int) -> Tensor:
    """How much more often than the drawings (N, attributes) their like was sampled, (N,) with mean 1.

    The distribution over the drawings that has the sampled shares of every value, and is otherwise as even as can be: an
    exponential tilt, one parameter a value, found by its convex dual (Jaynes, Phys. Rev. 106, 1957) with a normal prior.
    """
    shown = torch.cat([F.one_hot(labels[:, i].long(), len(values)) for i, values in enumerate(ATTRIBUTES.values())], 1).double()
    wanted = torch.cat([shares[name] for name in ATTRIBUTES]).double()
    theta = torch.zeros(len(wanted), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def dual() -> Tensor:
        optimiser.zero_grad()
        value = (shown @ theta).logsumexp(0) - wanted @ theta + STRENGTH / samples / 2 * theta.square().sum()
        value.backward()
        return value

    optimiser.step(dual)
    return ((shown @ theta.detach()).softmax(0) * len(labels)).float()
