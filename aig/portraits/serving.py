"""The embedded world, loaded safely and held ready for sampling and scoring."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from aig.assets import ASSETS, verify
from aig.machine import precision
from aig.machine.packed import packed
from aig.machine.silence import quiet
from aig.method.adapters import blend, fused
from aig.portraits.captions import MAX_TOKENS
from aig.portraits.population import ATTRIBUTES
from aig.portraits.rewards import build
from aig.portraits.ruler import Ruler
from aig.runs.facts import Facts
from aig.runs.models import Model

WORLDS = ("portraits",)
#: Tuned models of the embedded world in the order in which they are offered, and what the page says of each.
TUNED = {
    "preference": "Pays for studio light first, which comes late in sampling, and for glasses, long hair and two styles.",
    "fashion": "Pays for who is shown alone: red hair, blue backgrounds, green outfits. The last steps paint colours over, so no "
    "schedule keeps both.",
    "vivid": "Pays for colourfulness, by a formula.",
}


def load(name: str = "portraits", *, assets: Path = ASSETS, kl_cache: int = 6) -> Model:
    """Load a model by name. ValueError names the choices, or the asset that is missing or corrupted."""
    if name not in WORLDS:
        raise ValueError(f"Unknown model {name!r}; choose one of: {', '.join(WORLDS)}.")
    folder = assets / name
    verify(folder)
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    quiet()
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None, local_files_only=True)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.to(place)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae):
        packed(part.to(memory_format=torch.channels_last))
    chosen = precision.choose(pipe.unet)
    print(f"aig: {name} computes in {chosen}", file=sys.stderr)
    tunings: dict[str, tuple[float, ...]] = {}
    for path in sorted(folder.glob("loras/*.safetensors"), key=lambda path: (_place(path.stem), path.stem)):
        if found := re.fullmatch(r"(.+)-kl-([\d.]+)", path.stem):  # not the checkpoints on the way
            tunings[found[1]] = tuple(sorted((*tunings.get(found[1], ()), float(found[2]))))

    @lru_cache(maxsize=kl_cache)
    def twin(tuning: str, kl: float, scale: float) -> torch.nn.Module:
        return fused(pipe.unet, folder / "loras" / f"{tuning}-kl-{kl:g}.safetensors", scale)

    rewards = load_rewards(folder, place)
    facts = Facts(
        name=name,
        title="Portraits",
        tunings=tunings,
        rewards=tuple(rewards),
        held_out="held-out",
        size=pipe.unet.config.sample_size * pipe.vae_scale_factor,
        max_words=MAX_TOKENS - 2,
        values=ATTRIBUTES,
        precision=chosen,
        about="The app's own world of cartoon portraits. CC BY 4.0.",
        notes=TUNED,
        defaults={"closed": True},  # the last of twelve steps wins much of what the default reward pays for
    )
    return Model(
        facts=facts,
        pipe=pipe,
        rewards=rewards,
        twin=twin,
        moving=lambda tuning, kl: blend(pipe.unet, twin(tuning, kl, 1.0)),
        measure=load_ruler(folder, place),
    )


def _place(stem: str) -> int:
    """Where the tuned model of a LoRA file stands among those on offer."""
    name = stem.partition("-kl-")[0]
    return list(TUNED).index(name) if name in TUNED else len(TUNED)


def load_ruler(folder: Path, place: str = "cpu") -> Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The attribute classifier of an asset folder as a function of images: features and class probabilities."""
    from safetensors.torch import load_file

    from aig.portraits.population import ATTRIBUTES

    ruler = Ruler(ATTRIBUTES)
    ruler.load_state_dict(load_file(folder / "ruler.safetensors"))
    packed(ruler.to(place, memory_format=torch.channels_last).eval().requires_grad_(False))

    def measure(images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            features, logits = ruler(images.to(place))
        return features.cpu(), {name: values.softmax(1).cpu() for name, values in logits.items()}

    return measure


def load_rewards(folder: Path, place: str = "cpu") -> dict[str, torch.nn.Module]:
    """The rewards of an asset folder by name, differentiable in the images."""
    rewards = {}
    for path in sorted(folder.glob("rewards/*.safetensors")):
        name, reward = path.stem, build(path.stem)
        reward.load_state_dict(load_file(path))
        rewards[name] = packed(reward.to(place, memory_format=torch.channels_last).eval().requires_grad_(False))
    return rewards
