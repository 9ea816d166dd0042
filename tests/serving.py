"""A small real model and the real app around it, served on a free port, for the tests of the interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from aig.adapters import fused
from aig.engine import Engine, Update
from aig.features import Ruler
from aig.models import Model
from aig.world.portraits import ATTRIBUTES


def tiny_model(pipe: StableDiffusionPipeline, lora_file: Path, kl: tuple[float, ...] = (0.0, 0.5, 2.0)) -> Model:
    """A Model of real classes: random weights, 16x16 images, brightness, contrast of channels and redness as its rewards."""
    torch.manual_seed(2)
    ruler = Ruler(ATTRIBUTES, widths=(8, 8, 8, 8)).eval()

    @torch.no_grad()
    def measure(images):
        features, logits = ruler(images)
        return features, {name: (20 * values).softmax(1) for name, values in logits.items()}

    return Model(
        name="tiny",
        pipe=pipe,
        rewards={
            "preference": lambda images, prompts: images.mean(dim=(1, 2, 3)),
            "vivid": lambda images, prompts: images.std(dim=1).mean(dim=(1, 2)),
            "held-out": lambda images, prompts: images[:, 0].mean(dim=(1, 2)),
        },
        tunings={"preference": kl, "vivid": (0.0,)},
        twin=lru_cache(
            lambda reward, coefficient, scale: fused(pipe.unet, lora_file, scale / (1 + coefficient + (reward == "vivid")))
        ),
        measure=measure,
        values=ATTRIBUTES,
        max_words=20,
    )


def slowed(pipe: StableDiffusionPipeline, seconds: float) -> list[float]:
    """Make every evaluation of the base denoiser last ``seconds`` longer; returns the growing list of their times."""
    times: list[float] = []

    def wait(module, inputs):
        times.append(time.monotonic())
        time.sleep(seconds)

    pipe.unet.conv_in.register_forward_pre_hook(wait)
    return times


@contextmanager
def served(load: Callable[[], Model], recording: Sequence[Update] = ()) -> Iterator[str]:
    """The address of the launched app, which opens on the recording."""
    import app  # here, because the engine's tests need no gradio
    from aig.ui import theme

    engine = Engine(load)
    blocks = app.build(engine, recording)
    try:
        _, url, _ = blocks.launch(
            server_name="127.0.0.1",
            prevent_thread_lock=True,
            quiet=True,
            theme=theme.theme(),
            head=theme.head(),
            **app.LAUNCH,
        )
        yield url.rstrip("/")
    finally:
        blocks.close(verbose=False)
        engine.close()
