"""Settings of the embedded world: ``cpu`` trains in about twelve hours on two cores; ``gpu`` wants a CUDA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORK = Path(".work/world")  # drawings, checkpoints, curves: everything that is not shipped


@dataclass(frozen=True, kw_only=True)
class World:
    """One size of the world; every stage reads its settings here. Images are (B, 3, size, size) in [-1, 1]."""

    name: str
    size: int
    drawings: int
    held_out: int
    latent_channels: int
    vae_channels: int  # of the decoder; the encoder has as many as a patch has numbers
    vae_levels: int
    vae_blocks: tuple[int, ...]  # of the decoder, from the smallest grid to the largest
    vae_steps: int
    decoder_steps: int  # of the decoder alone, after that
    unet_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    text_steps: int
    denoiser_cycles: tuple[tuple[int, float], ...]  # the update at which each cycle of the learning rate ends, and its peak
    tilted_cycles: int  # before each of so many last ones the drawings' weights are corrected by samples
    tilt_samples: int
    denoiser_batch: int
    ruler_steps: int
    reward_steps: int
    kl: tuple[float, ...]  # coefficients, a LoRA each, 0 first
    tuning: Mapping[str, tuple[int, ...]]  # tuned model -> the updates after which its run without KL is saved; the last one ends it
    seed: int = 0

    @property
    def work(self) -> Path:
        return WORK / self.name

    def updates(self, tuning: str) -> tuple[int, ...]:
        """After which a tuned model's run without KL is saved; those that only the evaluation needs are tuned as long as ``preference``."""
        return self.tuning.get(tuning, self.tuning["preference"])

    @property
    def latent_size(self) -> int:
        return self.size // 2 ** (self.vae_levels - 1)


CPU = World(
    name="cpu",
    size=64,
    drawings=48_000,
    held_out=2_000,
    latent_channels=12,
    vae_channels=48,
    vae_levels=3,
    vae_blocks=(6, 3, 1),
    vae_steps=4_600,
    decoder_steps=4_000,
    unet_channels=(64, 128, 256),
    text_width=192,
    text_layers=2,
    text_steps=1_500,
    denoiser_cycles=(
        (6_000, 6e-4), (7_600, 3e-4), (13_000, 5e-4), (16_500, 4e-4), (17_500, 3e-4), (19_000, 3e-4), (19_700, 2e-4), (22_000, 3e-4),
        (23_200, 2e-4), (24_400, 2e-4), (27_400, 1.5e-4),
    ),
    tilted_cycles=5,
    tilt_samples=2_000,
    denoiser_batch=32,
    ruler_steps=2_200,
    reward_steps=800,
    kl=(0.0, 0.1, 0.3, 1.0, 3.0, 10.0),
    tuning={
        "preference": (16, 24, 32, 40, 44, 48, 52),
        "fashion": (8, 12, 16, 20, 28, 36, 52),
        "vivid": (8, 12, 16, 20, 28, 36, 52),
    },
)  # fmt: skip

GPU = World(
    name="gpu",
    size=128,
    drawings=198_000,
    held_out=2_000,
    latent_channels=16,
    vae_channels=64,
    vae_levels=4,
    vae_blocks=(6, 3, 1, 1),
    vae_steps=40_000,
    decoder_steps=20_000,
    unet_channels=(128, 256, 384),
    text_width=192,
    text_layers=2,
    text_steps=1_500,
    denoiser_cycles=((100_000, 6e-4), (110_000, 3e-4)),
    tilted_cycles=1,
    tilt_samples=10_000,
    denoiser_batch=256,
    ruler_steps=10_000,
    reward_steps=10_000,
    kl=(0.0, 0.1, 0.3, 1.0, 3.0, 10.0),
    tuning=dict.fromkeys(("preference", "fashion", "vivid"), (10, 20, 40, 60, 80, 100, 120)),
)

PRESETS = {preset.name: preset for preset in (CPU, GPU)}
