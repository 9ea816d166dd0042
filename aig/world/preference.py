"""Stage ``rewards``: simulated annotators, and the two preference rewards that are fitted to their choices.

An annotator's utility of a picture has three parts, all declared below: *taste over modes* (which style, hair, background:
what makes tuning collapse), *finish within modes* (saturation, contrast, softness, noise: what can be improved in any portrait), and
*agreement* with the prompt. Two disjoint populations share most of the taste; each has a fad of its own. The proxy is fitted
to the first, the held-out judge to the second; they also differ in architecture and seed, and only the proxy, which tuning
attacks, is trained against attacks. The held-out population dislikes some of the proxy's fads (red hair is worth 1.1 to one and 0.1 to
the other) and oversaturation. Tuning on the proxy can therefore win real preference at first and then only the fad: that is reward
hacking with a known, declared cause. The further rewards, ``vivid`` and ``compressible``, are formulas; here they get their scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from aig.rewards import Compressible, PreferenceReward, Saturated, Vivid
from aig.world import augment, data
from aig.world.autoencoder import reconstructed
from aig.world.captions import caption, known_words, named_attributes
from aig.world.portraits import ATTRIBUTES, decode
from aig.world.presets import Preset
from aig.world.training import device, fit

SHARED_TASTE = {
    "mood": {"smiling": 0.6, "sad": -0.4},
    "hair colour": {"red": 0.5},
    "background": {"blue": 0.4, "gray": -0.4},
    "hair length": {"long": 0.4, "bald": -0.3},
    "outfit": {"green": 0.4, "black": -0.3},
}
SHARED_FINISH = {"saturation": 1.2, "contrast": 0.8, "softness": -1.5, "noise": -2.5}  # utility per unit of each
P_BARE = 0.25  # of a pair without a prompt, where only taste and finish count
VOTERS = 8  # annotators who compare each pair; the reward is fitted to their shares
TELLING = 0.5  # weight of the loss that the tower's features tell what a picture shows: choices alone teach it slowly
AGREEMENT = 2.0  # utility of a picture that shows all that its prompt names, against none of it
REACH = 8 / 255  # how far an attack may move each pixel value


@dataclass(frozen=True, kw_only=True)
class Population:
    """A group of annotators and the shape of the model that is fitted to them."""

    fad: Mapping[str, Mapping[str, float]]  # taste that the other population does not share
    oversaturation: float  # utility per squared saturation above the drawn one
    widths: tuple[int, ...]
    kernel: int
    seed: int
    steadiness: float = 0.0  # weight of the loss that an attack on the pixels must not raise the reward, in a last phase


POPULATIONS = {
    "preference": Population(
        fad={
            "style": {"avataaars": 0.8, "personas": 0.4}, "hair colour": {"red": 0.6}, "background": {"blue": 0.8},
            "glasses": {"yes": 0.6}, "hair length": {"long": 0.3}, "outfit": {"green": 0.5},
        },
        oversaturation=0.0, widths=(32, 64, 96, 128), kernel=3, seed=11, steadiness=0.5,
    ),
    "held-out": Population(
        fad={
            "style": {"micah": 0.5}, "hair colour": {"red": -0.4, "black": 0.4}, "background": {"blue": -0.3, "green": 0.5},
            "glasses": {"yes": -0.2}, "outfit": {"green": -0.2, "purple": 0.4},
        },
        oversaturation=-6.0, widths=(32, 48, 96, 128), kernel=5, seed=12,
    ),
}  # fmt: skip

FORMULAS = {"vivid": Vivid, "compressible": Compressible}
NAMES = (*POPULATIONS, *FORMULAS)


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
    noise = torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) < 0.5)
    size = images.shape[-1] // (1, 2, 4)[int(torch.randint(3, (1,), generator=rng))]  # fine, or blotches as large as a latent
    images = augment.noisy(images, 0.12 * noise, size, rng)
    return images, {"saturation": saturation, "contrast": contrast_, "softness": softness, "noise": noise}


def utility(population: Population, labels: torch.Tensor, amounts: Mapping[str, torch.Tensor], prompts) -> torch.Tensor:
    """The noiseless utility (B,) of pictures with known labels (B, attributes) and finish under their prompts."""
    table = taste(population)
    modes = table[torch.arange(len(ATTRIBUTES)), labels.long()].sum(1)
    within = sum(SHARED_FINISH[name] * amount for name, amount in amounts.items())
    within = within + population.oversaturation * amounts["saturation"].clamp(min=0).square()
    agreement = torch.zeros(len(labels))
    for row, prompt in enumerate(prompts):
        named = named_attributes(prompt)
        person = decode(labels[row])
        if named:
            agreement[row] = AGREEMENT * sum(person[name] == value for name, value in named.items()) / len(named)
    return modes + within + agreement


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """B pairs of damaged, finished pictures. The prompt describes the first picture of its pair, if there is one; the second is any."""

    images: torch.Tensor  # (2B, 3, H, W), first pictures first
    prompts: list[str]  # B
    utilities: torch.Tensor  # (2, B), noiseless
    labels: torch.Tensor  # (2B, attributes)
    amounts: torch.Tensor  # (2B, parts of the finish)


def pairs(population: Population, images, labels, pool: tuple[int, int], batch: int, rng: torch.Generator) -> Pairs:
    """Random pairs of the drawings in a range."""
    index = torch.randint(*pool, (2 * batch,), generator=rng).numpy()
    chosen = torch.as_tensor(labels[index])
    prompts = [caption(decode(row), rng, 0.3) if torch.rand((), generator=rng) > P_BARE else "" for row in chosen[:batch]]
    x, amounts = finish(augment.damage(data.unit(images[index]), rng, noise=False), rng)
    return Pairs(
        images=x,
        prompts=prompts,
        utilities=utility(population, chosen, amounts, prompts * 2).view(2, batch),
        labels=chosen.long(),
        amounts=torch.stack(list(amounts.values()), 1),
    )


def train(preset: Preset) -> Iterator[dict[str, float]]:
    """Fit both preference rewards, scale the others, and save all to ``work/rewards``."""
    for name in POPULATIONS:
        yield from train_one(preset, name)
    for name in FORMULAS:
        save(build(name).to(device()), preset, name)


def build(name: str) -> Saturated:
    """An untrained reward of this name. ValueError names the choices."""
    if name in FORMULAS:
        return FORMULAS[name]()
    if name not in POPULATIONS:
        raise ValueError(f"Unknown reward {name!r}; choose one of: {', '.join(NAMES)}.")
    population = POPULATIONS[name]
    return PreferenceReward(known_words(), population.widths, population.kernel)


def attacked(reward: Saturated, images: torch.Tensor, prompts, *, steps: int, stride: float) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] whose raw reward ``steps`` of projected gradient ascent raised, every pixel value within
    ``REACH`` and by ``stride`` times that in a step (Madry et al., arXiv 1706.06083)."""
    moved = images
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(reward.raw(moved, prompts).sum(), moved)
        moved = (images + (moved.detach() + stride * REACH * slope.sign() - images).clamp(-REACH, REACH)).clamp(0, 1)
    return moved.detach()


def robustness(reward: Saturated, images, *, steps: int = 50) -> float:
    """How far gradient ascent on the pixels of drawings (N, H, W, 3) uint8 raises the reward, in its standard deviations over them."""
    x, prompts = data.unit(images).to(device()), [""] * len(images)
    with torch.no_grad():
        before = reward(x, prompts)
    moved = attacked(reward, x, prompts, steps=steps, stride=2.5 / steps)
    with torch.no_grad():
        return float((reward(moved, prompts) - before).mean() / before.std())


def steadiness(reward: Saturated, x: torch.Tensor, prompts: list[str], rng: torch.Generator) -> torch.Tensor:
    """Mean squared rise of the raw reward of pictures x (B, 3, H, W) under a short attack, over its variance between a picture and
    another under the same prompt: a reward that says less is no steadier, nor is one that tells prompts apart.

    Only rises count, as tuning only raises the reward: one that must not fall either would have to overlook noise.

    The attack takes steps of a random size, small ones too: against large ones alone, the reward would learn to see noise in them
    and not to resist the many small ones that matter (a kind of catastrophic overfitting, Wong et al., arXiv 2001.03994).
    """
    moved = attacked(reward, x, prompts, steps=6, stride=0.05 + 0.25 * float(torch.rand((), generator=rng)))
    before, another = reward.raw(x, prompts), reward.raw(x.roll(1, 0), prompts)
    variance = (before - another).square().mean() / 2
    return (reward.raw(moved, prompts) - before).clamp(min=0).square().mean() / (variance + 1e-4)


def attribute_loss(predicted: torch.Tensor, drawn: Pairs) -> torch.Tensor:
    """How badly predictions (2B, all values and amounts of finish) tell what pairs show: cross-entropy plus squared error."""
    *logits, amounts = predicted.split([*map(len, ATTRIBUTES.values()), len(SHARED_FINISH)], dim=1)
    wrong = [F.cross_entropy(values, drawn.labels[:, i].to(predicted.device)) for i, values in enumerate(logits)]
    return torch.stack(wrong).mean() + F.mse_loss(amounts, drawn.amounts.to(predicted.device))


def train_one(preset: Preset, name: str, batch: int = 32) -> Iterator[dict[str, float]]:
    """Fit one reward to the choices of its population; a second cycle of the learning rate steadies it against attacks."""
    images, labels = data.load(preset)
    population = POPULATIONS[name]
    torch.manual_seed(population.seed)
    model = build(name).to(device(), memory_format=torch.channels_last)
    telling = nn.Linear(model.head[0].in_features, sum(map(len, ATTRIBUTES.values())) + len(SHARED_FINISH)).to(device())
    half = preset.drawings // 2  # disjoint drawings for the two populations
    pool = (0, half) if name == "preference" else (half, preset.drawings)
    vae = AutoencoderTiny.from_pretrained(preset.work / "vae").to(device()).requires_grad_(False)

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        steady = step >= preset.reward_steps
        model.train(not steady)  # with batch statistics an attack would be met by ever smaller weights, which they undo
        drawn = pairs(population, images, labels, pool, batch, rng)
        x, u = drawn.images.to(device()), drawn.utilities
        if step % 4 == 0:  # what the autoencoder makes of a drawing must be worth as much
            x = reconstructed(vae, x)
        votes = torch.rand(VOTERS, batch, generator=rng) < torch.sigmoid(u[0] - u[1])
        share = votes.float().mean(0).to(device())
        seen = model.seen(x)
        raw, telling_loss = model.judged(seen, drawn.prompts * 2).view(2, batch), attribute_loss(telling(seen), drawn)
        margin = raw[0] - raw[1]
        choice = F.binary_cross_entropy_with_logits(margin, share) + 1e-3 * raw.square().mean()
        terms = {"loss": choice + TELLING * telling_loss, "choice": choice, "telling": telling_loss}
        terms["right"] = torch.where(margin > 0, share, 1 - share).mean()
        if steady:
            clean = (drawn.amounts[:, list(SHARED_FINISH).index("noise")] == 0).nonzero().squeeze(1)[: batch // 2]
            change = steadiness(model, x[clean], [(drawn.prompts * 2)[i] for i in clean], rng)  # less noise may be worth more
            terms |= {"loss": terms["loss"] + population.steadiness * change, "change": change.sqrt()}
        return terms

    folder = preset.work / f"reward-{name}"
    both = nn.ModuleList([model, telling])
    cycles = [(preset.reward_steps, 2e-3)] + [(preset.reward_steps * 2, 5e-4)] * (population.steadiness > 0)
    yield from fit(both, loss, cycles=tuple(cycles), folder=folder, seed=population.seed, weight_decay=0.05)
    save(model, preset, name)


@torch.no_grad()
def save(model: Saturated, preset: Preset, name: str) -> None:
    """Shift and scale so that drawings without a prompt have mean 0 and standard deviation 1; then write."""
    images, _ = data.load(preset)
    batches = [data.unit(rows).to(device()) for rows in np.array_split(images[: min(2_000, preset.drawings)], 8)]
    if isinstance(model, PreferenceReward):
        model.centre(batches)
    raw = torch.cat([model.raw(batch, [""] * len(batch)) for batch in batches])
    model.shift.copy_(raw.mean())
    model.scale.copy_(raw.std())
    (preset.work / "rewards").mkdir(exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, preset.work / "rewards" / f"{name}.safetensors")


@torch.no_grad()
def pair_accuracy(model: PreferenceReward, preset: Preset, name: str, batches: int = 40) -> tuple[float, float]:
    """Share of held-out noisy choices that the model predicts, and the share that the true utility predicts (its ceiling)."""
    images, labels = data.load(preset)
    population, rng = POPULATIONS[name], torch.Generator().manual_seed(99)
    pool = (preset.drawings, preset.drawings + preset.held_out)
    right, ceiling = [], []
    for _ in range(batches):
        drawn = pairs(population, images, labels, pool, 32, rng)
        u = drawn.utilities
        wins = torch.rand(32, generator=rng) < torch.sigmoid(u[0] - u[1])
        raw = model.raw(drawn.images.to(device()), drawn.prompts * 2).view(2, 32).cpu()
        right.append(((raw[0] > raw[1]) == wins).float().mean())
        ceiling.append(((u[0] > u[1]) == wins).float().mean())
    return float(torch.stack(right).mean()), float(torch.stack(ceiling).mean())
