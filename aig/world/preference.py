"""Stage ``rewards``: the preference rewards, fitted to the choices of simulated annotators.

Annotators compare two pictures under one prompt, or without one, by the utilities of ``aig.world.tastes``; a Bradley-Terry
model is fitted to their votes. The rewards that are tuned on and the held-out judge differ in architecture and seed and see
disjoint drawings; only the former are trained against attacks. Tuning can therefore win real preference at first, and then only
what the judge does not share: reward hacking with a known, declared cause. A further reward, ``vivid``, is a formula; here it gets
its scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from aig.portraits.captions import caption
from aig.portraits.light import MOST_LIGHT, lit
from aig.portraits.population import decode
from aig.portraits.rewards import FORMULAS, SHOWN, ConceptReward, PreferenceReward, Saturated, build
from aig.training import device, fit
from aig.world import augment, data
from aig.world.autoencoder import reconstructed
from aig.world.presets import World
from aig.world.tastes import FINISH, TASTES, Taste, utility

P_LIT = 0.75  # of a picture
P_ALIKE = 0.5  # of a pair
P_BARE = 0.25  # of a pair without a prompt, where only taste and finish count
VOTERS = 8  # annotators who compare each pair; the reward is fitted to their shares
REACH = 8 / 255  # how far an attack may move each pixel value


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a model is fitted to a population."""

    seed: int
    pool: int = 0  # the half of the drawings that its annotators see
    telling: float = 1.0  # weight of the loss that the tower tells what a picture shows
    steadiness: float = 0.5  # weight of the loss that an attack on the pixels must not raise the reward, in a last phase


#: The held-out judge differs from those that are tuned on in architecture, seed and drawings, and is not trained against attacks.
FITS = {
    "preference": Fit(seed=13),
    "fashion": Fit(seed=11, telling=0.5),
    "held-out": Fit(seed=12, pool=1, telling=0.5, steadiness=0.0),
}


Amounts = dict[str, torch.Tensor]  # of each of FINISH, (B,), 0 = as drawn


def finishes(n: int, rng: torch.Generator) -> Amounts:
    """Random amounts of finish."""
    saturation, contrast = (torch.randn(n, generator=rng) * s for s in (0.3, 0.2))
    softness = (torch.rand(n, generator=rng) < 0.3).float()
    noise = torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) < 0.5)
    light = MOST_LIGHT * torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) < P_LIT)
    return dict(zip(FINISH, (saturation, contrast, softness, noise, light)))


def finished(images: torch.Tensor, amounts: Amounts, rng: torch.Generator) -> torch.Tensor:
    """Images (B, 3, H, W) with these amounts of finish."""
    images = augment.saturate(images, (1 + amounts["saturation"]).clamp(0.1, 2))
    images = augment.contrast(images, (1 + amounts["contrast"]).clamp(0.3, 1.6))
    images = torch.where(amounts["softness"].view(-1, 1, 1, 1) > 0, augment.soften(images, 22), images)
    size = images.shape[-1] // (1, 2, 4)[int(torch.randint(3, (1,), generator=rng))]  # fine, or blotches as large as a latent
    images = augment.noisy(images, 0.12 * amounts["noise"], size, rng)
    return lit(images, amounts["light"])


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """B pairs of damaged, finished pictures. The prompt describes the first picture of its pair, if there is one; the second is any."""

    images: torch.Tensor  # (2B, 3, H, W), first pictures first
    prompts: list[str]  # B
    utilities: torch.Tensor  # (2, B), noiseless
    labels: torch.Tensor  # (2B, attributes)
    amounts: torch.Tensor  # (2B, parts of the finish)


def pairs(taste: Taste, images, labels, pool: tuple[int, int], batch: int, rng: torch.Generator) -> Pairs:
    """Random pairs of the drawings in a range; ``P_ALIKE`` of them are finished alike, so that choices tell of modes too."""
    index = torch.randint(*pool, (2 * batch,), generator=rng).numpy()
    chosen = torch.as_tensor(labels[index])
    prompts = [caption(decode(row), rng, 0.3) if torch.rand((), generator=rng) > P_BARE else "" for row in chosen[:batch]]
    first, second, alike = finishes(batch, rng), finishes(batch, rng), torch.rand(batch, generator=rng) < P_ALIKE
    amounts = {name: torch.cat([first[name], torch.where(alike, first[name], second[name])]) for name in FINISH}
    return Pairs(
        images=finished(augment.damage(data.unit(images[index]), rng, noise=False), amounts, rng),
        prompts=prompts,
        utilities=utility(taste, chosen, amounts, prompts * 2).view(2, batch),
        labels=chosen.long(),
        amounts=torch.stack(list(amounts.values()), 1),
    )


def train(preset: World) -> Iterator[dict[str, float]]:
    """Fit both preference rewards, scale the others, and save all to ``work/rewards``."""
    for name in FITS:
        yield from train_one(preset, name)
    for name in FORMULAS:
        save(build(name).to(device()), preset, name)


def attacked(reward: Saturated, images: torch.Tensor, prompts, *, steps: int, stride: float) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] whose raw reward ``steps`` of projected gradient ascent raised, every pixel value within
    ``REACH`` and by ``stride`` times that in a step (Madry et al., arXiv 1706.06083)."""
    moved = images
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(reward.raw(moved, prompts).sum(), moved)
        moved = (images + (moved.detach() + stride * REACH * gradient.sign() - images).clamp(-REACH, REACH)).clamp(0, 1)
    return moved.detach()


def robustness(reward: Saturated, images, *, steps: int = 50) -> float:
    """How far gradient ascent on the pixels of drawings (N, H, W, 3) uint8, finished at random, raises the reward, in its standard
    deviations over them."""
    rng = torch.Generator().manual_seed(97)
    x, prompts = finished(data.unit(images), finishes(len(images), rng), rng).to(device()), [""] * len(images)
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
    *logits, amounts = predicted.split(SHOWN, dim=1)
    wrong = [F.cross_entropy(values, drawn.labels[:, i].to(predicted.device)) for i, values in enumerate(logits)]
    return torch.stack(wrong).mean() + F.mse_loss(amounts, drawn.amounts.to(predicted.device))


def train_one(preset: World, name: str, batch: int = 32) -> Iterator[dict[str, float]]:
    """Fit one reward to the choices of its population; a second cycle of the learning rate steadies it against attacks."""
    images, labels = data.load(preset)
    how = FITS[name]
    torch.manual_seed(how.seed)
    model = build(name).to(device(), memory_format=torch.channels_last)
    by_concepts = isinstance(model, ConceptReward)
    telling = nn.Identity() if by_concepts else nn.Linear(model.head[0].in_features, sum(SHOWN)).to(device())
    half = preset.drawings // 2
    pool = (how.pool * half, (how.pool + 1) * half)
    vae = AutoencoderTiny.from_pretrained(preset.work / "vae").to(device()).requires_grad_(False)

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        steady = step >= preset.reward_steps
        model.train(not steady)  # with batch statistics an attack would be met by ever smaller weights, which they undo
        drawn = pairs(TASTES[name], images, labels, pool, batch, rng)
        x, u = drawn.images.to(device()), drawn.utilities
        if step % 4 == 0:  # what the autoencoder makes of a drawing must be worth as much
            x = reconstructed(vae, x)
        votes = torch.rand(VOTERS, batch, generator=rng) < torch.sigmoid(u[0] - u[1])
        share = votes.float().mean(0).to(device())
        seen = model.seen(x)
        telling_loss = attribute_loss(telling(seen), drawn)
        raw = model.judged(seen.detach() if by_concepts else seen, drawn.prompts * 2).view(2, batch)
        margin = raw[0] - raw[1]
        choice = F.binary_cross_entropy_with_logits(margin, share) + 1e-3 * raw.square().mean()
        terms = {"loss": choice + how.telling * telling_loss, "choice": choice, "telling": telling_loss}
        terms["right"] = torch.where(margin > 0, share, 1 - share).mean()
        if steady:
            clean = (drawn.amounts[:, list(FINISH).index("noise")] == 0).nonzero().squeeze(1)[: batch // 2]
            change = steadiness(model, x[clean], [(drawn.prompts * 2)[i] for i in clean], rng)  # less noise may be worth more
            terms |= {"loss": terms["loss"] + how.steadiness * change, "change": change.sqrt()}
        return terms

    folder = preset.work / f"reward-{name}"
    both = nn.ModuleList([model, telling])
    cycles = [(preset.reward_steps, 2e-3)] + [(preset.reward_steps * 2, 5e-4)] * (how.steadiness > 0)
    yield from fit(both, loss, cycles=tuple(cycles), folder=folder, seed=how.seed, weight_decay=0.05)
    save(model, preset, name)


@torch.no_grad()
def save(model: Saturated, preset: World, name: str) -> None:
    """Shift and scale, then write: drawings without a prompt have mean 0; those that annotators compare, which are finished at
    random, have standard deviation 1, and for a formula the drawings themselves."""
    images, _ = data.load(preset)
    rng = torch.Generator().manual_seed(98)
    batches = [data.unit(rows).to(device()) for rows in np.array_split(images[: min(2_000, preset.drawings)], 8)]
    spread = batches
    if isinstance(model, PreferenceReward):
        model.centre(batches)
        spread = [finished(batch.cpu(), finishes(len(batch), rng), rng).to(device()) for batch in batches]
    raw, wide = (torch.cat([model.raw(batch, [""] * len(batch)) for batch in each]) for each in (batches, spread))
    model.shift.copy_(raw.mean())
    model.scale.copy_(wide.std())
    (preset.work / "rewards").mkdir(exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, preset.work / "rewards" / f"{name}.safetensors")


@torch.no_grad()
def pair_accuracy(model: PreferenceReward, preset: World, name: str, batches: int = 40) -> tuple[float, float]:
    """Share of held-out noisy choices that the model predicts, and the share that the true utility predicts (its ceiling)."""
    images, labels = data.load(preset)
    rng = torch.Generator().manual_seed(99)
    pool = (preset.drawings, preset.drawings + preset.held_out)
    right, ceiling = [], []
    for _ in range(batches):
        drawn = pairs(TASTES[name], images, labels, pool, 32, rng)
        u = drawn.utilities
        wins = torch.rand(32, generator=rng) < torch.sigmoid(u[0] - u[1])
        raw = model.raw(drawn.images.to(device()), drawn.prompts * 2).view(2, 32).cpu()
        right.append(((raw[0] > raw[1]) == wins).float().mean())
        ceiling.append(((u[0] > u[1]) == wins).float().mean())
    return float(torch.stack(right).mean()), float(torch.stack(ceiling).mean())
