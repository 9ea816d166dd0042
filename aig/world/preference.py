"""Stage ``rewards``: simulated annotators, and the two preference rewards that are fitted to their choices.

An annotator's utility of a picture has three parts, all declared below: *taste over modes* (which style, hair, background:
what makes tuning collapse), *finish within modes* (saturation, contrast, softness: what can be improved in any portrait), and
*agreement* with the prompt. Two disjoint populations share most of the taste; each has a fad of its own. The proxy is fitted
to the first, the held-out judge to the second; they also differ in architecture, seed and damage. Tuning on the proxy can
therefore win real preference at first and then only the fad: that is reward hacking with a known cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from aig.rewards import PreferenceReward
from aig.world import augment, data
from aig.world.captions import caption, known_words, named_attributes
from aig.world.portraits import ATTRIBUTES, decode
from aig.world.presets import Preset
from aig.world.ruler import unit
from aig.world.training import device, fit

SHARED_TASTE = {
    "mood": {"smiling": 0.6, "sad": -0.4},
    "hair colour": {"red": 0.5},
    "background": {"blue": 0.4, "gray": -0.4},
}
SHARED_FINISH = {"saturation": 1.2, "contrast": 0.8, "softness": -1.5}  # utility per unit of each
VOTERS = 8  # annotators who compare each pair; the reward is fitted to their shares
AGREEMENT = 2.0  # utility of a picture that shows all that its prompt names, against none of it


@dataclass(frozen=True, kw_only=True)
class Population:
    """A group of annotators and the shape of the model that is fitted to them."""

    fad: Mapping[str, Mapping[str, float]]  # taste that the other population does not share
    oversaturation: float  # utility per squared saturation above the drawn one
    widths: tuple[int, ...]
    kernel: int
    seed: int
    noise: float = 1.0  # of the choice, in units of the logistic distribution
    finish: Mapping[str, float] = field(default_factory=lambda: SHARED_FINISH)


POPULATIONS = {
    "preference": Population(
        fad={"style": {"toon head": 0.8, "big smile": 0.4}, "hair colour": {"red": 0.6}, "background": {"blue": 0.8}, "glasses": {"yes": 0.5}},
        oversaturation=0.0, widths=(32, 64, 96, 128), kernel=3, seed=11,
    ),
    "held-out": Population(
        fad={"style": {"micah": 0.5}, "hair colour": {"red": -0.4, "black": 0.4}, "background": {"blue": -0.3, "green": 0.5}},
        oversaturation=-6.0, widths=(24, 48, 96, 144), kernel=5, seed=12,
    ),
}  # fmt: skip


def taste(population: Population) -> torch.Tensor:
    """Utilities (attributes, most values) of a population's taste over modes."""
    table = torch.zeros(len(ATTRIBUTES), max(len(values) for values in ATTRIBUTES.values()))
    for source in (SHARED_TASTE, population.fad):
        for attribute, utilities in source.items():
            for value, utility in utilities.items():
                table[list(ATTRIBUTES).index(attribute), ATTRIBUTES[attribute].index(value)] += utility
    return table


def finish(images: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Give each image a random finish; returns the images and the amounts (B,), 0 = as drawn."""
    n = len(images)
    saturation, contrast_ = (torch.randn(n, generator=rng) * s for s in (0.3, 0.2))
    images = augment.saturate(images, (1 + saturation).clamp(0.1, 2))
    images = augment.contrast(images, (1 + contrast_).clamp(0.3, 1.6))
    softness = (torch.rand(n, generator=rng) < 0.3).float()
    images = torch.where(softness.view(-1, 1, 1, 1) > 0, augment.soften(images, 22), images)
    return images, {"saturation": saturation, "contrast": contrast_, "softness": softness}


def utility(population: Population, labels: torch.Tensor, amounts: Mapping[str, torch.Tensor], prompts) -> torch.Tensor:
    """The noiseless utility (B,) of pictures with known labels (B, attributes) and finish under their prompts."""
    table = taste(population)
    modes = table[torch.arange(len(ATTRIBUTES)), labels.long()].sum(1)
    within = sum(population.finish[name] * amount for name, amount in amounts.items())
    within = within + population.oversaturation * amounts["saturation"].clamp(min=0).square()
    agreement = torch.zeros(len(labels))
    for row, prompt in enumerate(prompts):
        named = named_attributes(prompt)
        person = decode(labels[row])
        if named:
            agreement[row] = AGREEMENT * sum(person[name] == value for name, value in named.items()) / len(named)
    return modes + within + agreement


def _pairs(population: Population, images, labels, pool: tuple[int, int], batch: int, rng: torch.Generator):
    """Pairs of finished, damaged pictures (2 * batch, ...), the prompt of each pair, and noiseless utilities (2, batch).

    The prompt describes the first picture of a pair; the second one is any other.
    """
    index = torch.randint(*pool, (2 * batch,), generator=rng).numpy()
    chosen = torch.as_tensor(labels[index])
    prompts = [caption(decode(row), rng, 0.3) for row in chosen[:batch]]
    x, amounts = finish(unit(images[index]), rng)
    return augment.damage(x, rng), prompts, utility(population, chosen, amounts, prompts * 2).view(2, batch)


def train(preset: Preset) -> Iterator[dict[str, float]]:
    """Fit both rewards, one after the other, and save them to ``work/rewards``."""
    for name in POPULATIONS:
        yield from train_one(preset, name)


def build(name: str) -> PreferenceReward:
    """An untrained reward of this name."""
    population = POPULATIONS[name]
    return PreferenceReward(known_words(), population.widths, population.kernel)


def train_one(preset: Preset, name: str, batch: int = 32) -> Iterator[dict[str, float]]:
    images, labels = data.load(preset)
    population = POPULATIONS[name]
    torch.manual_seed(population.seed)
    model = build(name).to(device(), memory_format=torch.channels_last)
    half = preset.drawings // 2  # disjoint drawings for the two populations
    pool = (0, half) if name == "preference" else (half, preset.drawings)

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        x, prompts, u = _pairs(population, images, labels, pool, batch, rng)
        votes = torch.rand(VOTERS, batch, generator=rng) < torch.sigmoid((u[0] - u[1]) / population.noise)
        share = votes.float().mean(0).to(device())
        raw = model.raw(x.to(device()), prompts * 2).view(2, batch)
        margin = raw[0] - raw[1]
        return {
            "loss": F.binary_cross_entropy_with_logits(margin, share) + 1e-3 * raw.square().mean(),
            "right": torch.where(margin > 0, share, 1 - share).mean(),
        }

    folder = preset.work / f"reward-{name}"
    yield from fit(model, loss, cycles=((preset.reward_steps, 2e-3),), folder=folder, seed=population.seed, weight_decay=0.05)
    standardise(model, preset, images, labels)
    (preset.work / "rewards").mkdir(exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, preset.work / "rewards" / f"{name}.safetensors")


@torch.no_grad()
def standardise(model: PreferenceReward, preset: Preset, images, labels) -> None:
    """Shift and scale so that drawings, each under a caption of its own, have mean 0 and standard deviation 1."""
    rng = torch.Generator().manual_seed(0)
    n = min(2_000, preset.drawings)
    prompts = [caption(decode(row), rng, 0.3) for row in labels[:n]]
    raw = torch.cat([model.raw(unit(images[i : min(i + 250, n)]).to(device()), prompts[i : i + 250]) for i in range(0, n, 250)])
    model.shift.copy_(raw.mean())
    model.scale.copy_(raw.std())


@torch.no_grad()
def pair_accuracy(model: PreferenceReward, preset: Preset, name: str, batches: int = 40) -> tuple[float, float]:
    """Share of held-out noisy choices that the model predicts, and the share that the true utility predicts (its ceiling)."""
    images, labels = data.load(preset)
    population, rng = POPULATIONS[name], torch.Generator().manual_seed(99)
    pool = (preset.drawings, preset.drawings + preset.held_out)
    right, ceiling = [], []
    for _ in range(batches):
        x, prompts, u = _pairs(population, images, labels, pool, 32, rng)
        wins = torch.rand(32, generator=rng) < torch.sigmoid((u[0] - u[1]) / population.noise)
        raw = model.raw(x.to(device()), prompts * 2).view(2, 32).cpu()
        right.append(((raw[0] > raw[1]) == wins).float().mean())
        ceiling.append(((u[0] > u[1]) == wins).float().mean())
    return float(torch.stack(right).mean()), float(torch.stack(ceiling).mean())
