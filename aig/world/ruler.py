"""Stage ``ruler``: train the attribute classifier, whose features measure diversity.

No reward and no tuning ever sees it. Of the base model's training it sees how often samples show each value (``tilt``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from aig.features import Ruler
from aig.world import data
from aig.world.augment import damage
from aig.world.portraits import ATTRIBUTES
from aig.world.presets import Preset
from aig.world.training import device, fit


def train(preset: Preset, batch: int = 64) -> Iterator[dict[str, float]]:
    """Train, resume and finally save to ``work/ruler.safetensors``."""
    images, labels = data.load(preset)
    torch.manual_seed(preset.seed)
    model = Ruler(ATTRIBUTES).to(device(), memory_format=torch.channels_last)

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(preset.drawings, (batch,), generator=rng).numpy()
        _, logits = model(damage(data.unit(images[index]), rng).to(device()))
        target = torch.as_tensor(labels[index]).long().to(device())
        terms = [F.cross_entropy(logits[name], target[:, i]) for i, name in enumerate(ATTRIBUTES)]
        right = torch.stack([(logits[name].argmax(1) == target[:, i]).float().mean() for i, name in enumerate(ATTRIBUTES)])
        return {"loss": torch.stack(terms).mean(), "right": right.mean()}

    yield from fit(model, loss, cycles=((preset.ruler_steps, 3e-3),), folder=preset.work / "ruler", seed=preset.seed + 1)
    with torch.no_grad():
        model.mean.zero_()
        model.mean.copy_(torch.cat([model(x.to(device()))[0] for x in data.batches(images[:5_000])]).mean(0))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, preset.work / "ruler.safetensors")
