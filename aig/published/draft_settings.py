"""What a DRaFT+ run is asked for, as its folder notes it, and the card that it ends with; the training is ``draft``."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from aig.method import families
from aig.training import seconds_spent

PRECISIONS = ("bf16", "no")


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """What a tuning run does."""

    updates: int  # of the LoRA
    kl: float = 0.0  # the authors tried 0, 0.1, 0.5, 1, 2, 5, 10, 20 and 50
    seed: int = 0
    batch: int = 32  # images an update; the authors' 32 for SDXL, 64 for Stable Diffusion 1.x
    at_once: int = 4  # images in memory; their gradients add up to the batch's
    truncation: int = 1  # K, the last steps that are differentiated
    steps: int = 25  # of sampling
    guidance: float | None = None  # None: the pipeline's own, which are the authors' 7.5 for SD 1.x and 5 for SDXL
    size: int | None = None  # pixels of a side; None: the pipeline's own
    rank: int = 32
    rate: float = 2.5e-4  # of learning, after 10 updates of warm-up
    clip: float = 10.0  # norm of the gradient
    precision: str | None = None  # of the computation, one of PRECISIONS; None: bf16 on a GPU


def resolved(pipe: DiffusionPipeline, settings: DraftSettings) -> DraftSettings:
    """The settings with the pipeline's own guidance filled in. ValueError names what is out of range."""
    if settings.guidance is None:
        own = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
        settings = replace(settings, guidance=float(own))
    if settings.precision is None:
        settings = replace(settings, precision="bf16" if torch.cuda.is_available() else "no")
    for name in ("updates", "batch", "at_once", "truncation", "steps", "rank"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be a whole number from 1, not {getattr(settings, name)}.")
    if settings.truncation > settings.steps:
        raise ValueError(f"truncation must be at most the {settings.steps} sampling steps, not {settings.truncation}.")
    for name, least in (("kl", 0.0), ("guidance", 0.0), ("rate", 1e-12), ("clip", 1e-12)):
        if not least <= getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be a number from {least:g}, not {getattr(settings, name)}.")
    families.latent_shape(pipe, settings.size)  # which checks the size
    if settings.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {settings.precision!r}.")
    return settings


def begin(out: Path, pipe: DiffusionPipeline, prompts: Sequence[str], settings: DraftSettings) -> None:
    """Note the settings in the run's folder, or check that they are those of the run that is there; updates may be added."""
    parts = {"pipeline": type(pipe).__name__, "scheduler": type(pipe.scheduler).__name__}
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    noted = parts | asdict(settings) | {"prompts": len(prompts), "digest": digest}
    del noted["updates"]
    file = out / "settings.json"
    if file.is_file():
        there = json.loads(file.read_text())
        for key in noted:
            if there.get(key) != noted[key]:
                raise ValueError(f"{str(out)!r} holds a run with {key} {there.get(key)!r}, not {noted[key]!r}; choose another folder.")
        return
    out.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".tmp").write_text(json.dumps(noted, indent=1) + "\n")
    os.replace(file.with_suffix(".tmp"), file)


def card(out: Path, *, base: str, licence: str, reward: str) -> str:
    """The finished run's README.md: what was tuned on what, how, for how long, and what the curve says.

    base, reward: names for people, where they are on the Hub the repository's id. licence: of the base model, or "".
    """
    settings = json.loads((out / "settings.json").read_text())
    rows = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    ends = [{key: sum(row[key] for row in some) / len(some) for key in ("reward", "gap")} for some in (rows[:10], rows[-10:])]
    kind = f"load_lora_weights({out.name!r})" if settings["pipeline"] != "PixArtSigmaPipeline" else "(aig.method.adapters.fused reads it)"
    on_hub = base.count("/") == 1 and not base.startswith((".", "/"))
    return "\n".join(
        [
            "---",
            *([f"base_model: {base}"] if on_hub else []),
            "library_name: diffusers",
            "tags: [lora, text-to-image, draft, reward-tuning]",
            "---",
            "",
            f"# {base} tuned on {reward}",
            "",
            f"A LoRA for `{settings['pipeline']}`: `pipe.{kind}`. Tuned with DRaFT+ (Clark et al., arXiv 2309.17400; "
            "Jena et al., arXiv 2409.06493) by `python -m aig draft` "
            f"on {settings['prompts']} prompts, in {seconds_spent(out) / 3600:.2f} hours.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in settings.items() if key not in ("prompts", "digest")),
            f"| updates | {len(rows)} |",
            "",
            "| mean of 10 updates | first | last |",
            "|---|---|---|",
            f"| reward | {ends[0]['reward']:.4f} | {ends[1]['reward']:.4f} |",
            f"| mean squared distance from the base's predictions | {ends[0]['gap']:.3g} | {ends[1]['gap']:.3g} |",
            "",
            "A higher reward is not a better model: tuning on a reward costs diversity and can exploit the reward's faults.",
            "",
            f"Licence: the base model's ({licence or 'see its card'}) applies to images and weights "
            "made with this LoRA; the reward model and the prompts have licences of their own.",
            "",
        ]
    )


def authors_sampler(pipe: DiffusionPipeline) -> None:
    """Sample Stable Diffusion 1 and 2 with DDIM, as the authors did; their SDXL has Euler, which is its own."""
    from diffusers import DDIMScheduler

    if type(pipe).__name__ == "StableDiffusionPipeline":
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)


def pipeline_of(folder: Path) -> str:
    """The class of the pipeline in a folder. ValueError when there is none."""
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"The folder {folder.name!r} has no pipeline of diffusers (a model_index.json that names its class).") from problem
