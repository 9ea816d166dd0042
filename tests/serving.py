"""A small real model and the real app around it, served on a free port, for the tests of the interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from aig.method.adapters import blend, fused
from aig.portraits.population import ATTRIBUTES
from aig.portraits.ruler import Ruler
from aig.runs.comparison import Update
from aig.runs.engine import Engine
from aig.runs.facts import Facts
from aig.runs.models import Model, Offer

TINY = Facts(
    name="tiny",
    title="Tiny",
    tunings={"preference": (0.0, 0.5, 2.0), "vivid": (0.0,)},
    rewards=("preference", "vivid", "held-out"),
    held_out="held-out",
    size=16,
    max_words=20,
    values=ATTRIBUTES,
)


def tiny_model(pipe: StableDiffusionPipeline, lora_file: Path, kl: tuple[float, ...] = TINY.tunings["preference"]) -> Model:
    """A Model of real classes: random weights, 16x16 images, brightness, contrast of channels and redness as its rewards."""
    torch.manual_seed(2)
    ruler = Ruler(ATTRIBUTES, widths=(8, 8, 8, 8)).eval()

    @torch.no_grad()
    def measure(images):
        features, logits = ruler(images)
        return features, {name: (20 * values).softmax(1) for name, values in logits.items()}

    rewards = {
        "preference": lambda images, prompts: images.mean(dim=(1, 2, 3)),
        "vivid": lambda images, prompts: images.std(dim=1).mean(dim=(1, 2)),
        "held-out": lambda images, prompts: images[:, 0].mean(dim=(1, 2)),
    }

    @lru_cache
    def twin(tuning: str, coefficient: float, scale: float) -> torch.nn.Module:
        return fused(pipe.unet, lora_file, scale / (1 + coefficient + (tuning == "vivid")))

    return Model(
        facts=replace(TINY, tunings={"preference": kl, "vivid": (0.0,)}),
        pipe=pipe,
        rewards=rewards,
        twin=twin,
        moving=lambda tuning, coefficient: blend(pipe.unet, twin(tuning, coefficient, 1.0)),
        measure=measure,
    )


def plain_model(pipe: StableDiffusionPipeline, lora_file: Path) -> Model:
    """A second model, as unlike the first as a published one: other weights, no known attributes, other tuned models and defaults."""
    model = tiny_model(pipe, lora_file)
    pipe.unet.conv_out.weight.data.mul_(1.5)
    facts = Facts(
        name="plain",
        title="Plain",
        tunings={"spo": (0.0,), "dpo": (0.0,)},
        proxies={"spo": "pickscore", "dpo": "pickscore"},
        rewards=("pickscore", "imagereward"),
        held_out="imagereward",
        size=16,
        max_words=20,
        defaults={"steps": 6, "guidance": 2.0},
        about="Open RAIL, 6.9 GB.",
    )
    return replace(
        model,
        facts=facts,
        rewards={"pickscore": model.rewards["preference"], "imagereward": model.rewards["held-out"]},
        measure=lambda images: (model.features(images), {}),
        twin=lambda tuning, kl, scale: model.twin("vivid" if tuning == "dpo" else "preference", 0.0, scale),
    )


def finder(offers: Sequence[Offer]) -> Callable[[str], Offer]:
    """What an engine asks for models on offer."""
    named = {offer.facts.name: offer for offer in offers}

    def find(name: str) -> Offer:
        if name not in named:
            raise ValueError(f"Unknown model {name[:40]!r}; choose one of: {', '.join(named)}.")
        return named[name]

    return find


def slowed(pipe: StableDiffusionPipeline, seconds: float) -> list[float]:
    """Make every evaluation of the base denoiser last ``seconds`` longer; returns the growing list of their times."""
    times: list[float] = []

    def wait(module, inputs):
        times.append(time.monotonic())
        time.sleep(seconds)

    pipe.unet.conv_in.register_forward_pre_hook(wait)
    return times


@contextmanager
def served(
    load: Callable[[], Model],
    recordings: Sequence[Sequence[Update]] = (),
    offers: Sequence[Offer] = (),
    find: Callable[[str], Offer] | None = None,
) -> Iterator[str]:
    """The address of the launched app, which opens on the first recording and has further models on offer.

    find: what the engine asks for models, if visitors may name their own.
    """
    import app  # here, because the engine's tests need no gradio

    engine = Engine(load, find or finder(offers))
    blocks = app.build(engine, recordings, [offer.facts for offer in offers], allow_own=find is not None)
    try:
        _, url, _ = blocks.launch(
            server_name="127.0.0.1",
            prevent_thread_lock=True,
            quiet=True,
            **app.launching(),
        )
        yield url.rstrip("/")
    finally:
        blocks.close(verbose=False)
        engine.close()
