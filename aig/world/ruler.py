"""Stage ``ruler``: train the attribute classifier, whose features measure diversity.

It sees every drawing as drawn and under a random studio light and is to tell the same of both, and its features are to move far
less with the light than from one person to the next: how a portrait is finished is not who it shows. No reward and no tuning ever
sees it. Of the base model's training it sees how often samples show each value (``tilt``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from aig.portraits.light import MOST_LIGHT, lit
from aig.portraits.population import ATTRIBUTES
from aig.portraits.ruler import Ruler
from aig.training import device, fit
from aig.world import data
from aig.world.augment import damage
from aig.world.presets import World

INVARIANCE = 0.5  # weight of the loss that light must not move the features


def train(preset: World, batch: int = 48) -> Iterator[dict[str, float]]:
    """Train, resume and finally save to ``work/ruler.safetensors``."""
    images, labels = data.load(preset)
    torch.manual_seed(preset.seed)
    model = Ruler(ATTRIBUTES).to(device(), memory_format=torch.channels_last)

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(preset.drawings, (batch,), generator=rng).numpy()
        drawn = damage(data.unit(images[index]), rng)
        shone_on = lit(drawn, MOST_LIGHT * torch.rand(batch, generator=rng))
        features, logits = model(torch.cat([drawn, shone_on]).to(device()))
        target = torch.as_tensor(labels[index]).long().to(device()).repeat(2, 1)
        plain, moved = features.chunk(2)
        light = (moved - plain).square().mean() / ((plain - plain.roll(1, 0)).square().mean() / 2 + 1e-4)
        terms = [F.cross_entropy(logits[name], target[:, i]) for i, name in enumerate(ATTRIBUTES)]
        right = torch.stack([(logits[name].argmax(1) == target[:, i]).float().mean() for i, name in enumerate(ATTRIBUTES)])
        return {"loss": torch.stack(terms).mean() + INVARIANCE * light, "right": right.mean(), "light": light}

    yield from fit(model, loss, cycles=((preset.ruler_steps, 3e-3),), folder=preset.work / "ruler", seed=preset.seed + 1)
    with torch.no_grad():
        model.mean.zero_()
        model.mean.copy_(torch.cat([model(x.to(device()))[0] for x in data.batches(images[:5_000])]).mean(0))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, preset.work / "ruler.safetensors")
