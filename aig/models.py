"""Models that the app can serve: the embedded world, loaded safely and held ready for sampling and scoring."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from aig import precision
from aig.budget import UNLIMITED, Budget
from aig.facts import Facts
from aig.packed import packed
from aig.rewards import Reward

ASSETS = Path(__file__).parent.parent / "assets"
CHOICES = ("portraits",)
#: Tuned models of the embedded world in the order in which they are offered, and what the page says of each.
TUNED = {
    "preference": "Pays for studio light first, and on the way for fads: two styles, glasses, long hair. Late steps decide the light, "
    "so AIG keeps much of both.",
    "fashion": "Pays for colours and styles alone. What it pays for is the diversity itself, so no schedule can keep both.",
    "vivid": "Pays for colourfulness, by a formula.",
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base pipeline, its tuned twins, and everything that judges its images, (B, 3, H, W) in [0, 1]."""

    facts: Facts
    pipe: DiffusionPipeline
    rewards: Mapping[str, Reward]  # by name, at least those that judge the tuned model that was prepared
    twin: Callable[[str, float, float], Callable]  # (tuned model, KL coefficient, LoRA scale) -> tuned denoiser
    moving: Callable[[str, float], Callable[[float], Callable]]  # (tuned model, KL) -> LoRA scale of a step -> denoiser
    measure: Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]  # -> features, class probabilities
    prepare: Callable[[str, Callable[[str], None]], None] = lambda tuning, tell: None  # before a run of a tuned model
    release: Callable[[], None] = lambda: None  # free all memory at once, when another model is wanted
    budget: Callable[[], Budget] = lambda: UNLIMITED  # for the memory that is left once all is loaded
    size: int | None = None  # pixels to sample at; None for those that the denoiser was trained at

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, D) for diversity."""
        return self.measure(images)[0]

    def attributes(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Attribute -> class probabilities (B, values)."""
        return self.measure(images)[1]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model that can be loaded on demand. Its functions are given one to tell what they are doing, which ends them by raising."""

    facts: Facts
    load: Callable[[Callable[[str], None]], Model]
    missing: Callable[[str], bool] = lambda tuning: False  # whether runs of a tuned model need files that are not here yet
    fetch: Callable[[str, Callable[[str], None]], None] = lambda tuning, tell: None  # downloads them; needs no model, no GPU


def verify(folder: Path) -> None:
    """Check every file against ``manifest.json``; ValueError names the first one that is missing or changed."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"The asset folder {folder.name!r} has no manifest.json; restore it from the repository.")
    for name, digest in json.loads((folder / "manifest.json").read_text()).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"The asset {folder.name}/{name} is missing; restore it from the repository.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"The asset {folder.name}/{name} differs from its checksum; restore it from the repository.")


def load(name: str = "portraits", *, assets: Path = ASSETS, kl_cache: int = 6) -> Model:
    """Load a model by name. ValueError names the choices, or the asset that is missing or corrupted."""
    if name not in CHOICES:
        raise ValueError(f"Unknown model {name!r}; choose one of: {', '.join(CHOICES)}.")
    folder = assets / name
    verify(folder)
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    quiet()
    from diffusers import StableDiffusionPipeline

    from aig.adapters import blend, fused
    from aig.world.captions import MAX_TOKENS
    from aig.world.portraits import ATTRIBUTES

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


def quiet() -> None:
    """Keep the libraries' advice and progress bars, and prompts that they quote, out of the log; errors still appear."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def load_ruler(folder: Path, place: str = "cpu") -> Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The attribute classifier of an asset folder as a function of images: features and class probabilities."""
    from safetensors.torch import load_file

    from aig.features import Ruler
    from aig.world.portraits import ATTRIBUTES

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
    from safetensors.torch import load_file

    from aig.world.preference import build

    rewards = {}
    for path in sorted(folder.glob("rewards/*.safetensors")):
        name, reward = path.stem, build(path.stem)
        reward.load_state_dict(load_file(path))
        rewards[name] = packed(reward.to(place, memory_format=torch.channels_last).eval().requires_grad_(False))
    return rewards
