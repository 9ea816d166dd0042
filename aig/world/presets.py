"""Settings of the embedded world: ``cpu`` trains in about twelve hours on two cores; ``gpu`` wants a CUDA GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WORK = Path(".work/world")  # drawings, checkpoints, curves: everything that is not shipped


@dataclass(frozen=True, kw_only=True)
class Preset:
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
    tuning_steps: int
    kl: tuple[float, ...]  # coefficients, a LoRA each, 0 first
    checkpoints: tuple[int, ...]  # updates after which the run without KL is saved as well
    seed: int = 0
    note: str = ""  # how the shipped weights differ from what this recipe makes

    @property
    def work(self) -> Path:
        return WORK / self.name

    @property
    def latent_size(self) -> int:
        return self.size // 2 ** (self.vae_levels - 1)


CPU = Preset(
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
    note="The shipped weights took a longer way than this recipe. The denoiser's first 6,000 updates ran without the reading loss, its "
    "first 7,600 without balanced captions, its first 13,000 with uniform timesteps of the whole cosine schedule (then its time "
    "embedding was turned onto the part in use, which is exact: sines and cosines of sums) and all places weighing the same, on "
    "drawings whose moods were harder to see, like the text encoder's first phase and the autoencoder's; 3,500 updates from there "
    "on drew each kind of timestep from every other of 32 equal parts only; its first 16,500 knew no noise above 50, with 12% of "
    "captions empty for 35%, the next 1,000 had 20% and the cosine schedule's own last timesteps; at 17,500 it went on from half "
    "precision with a fresh optimiser, and its weights were averaged from then on. The first correction of the drawings' weights "
    "looked at styles, hair lengths, glasses and moods alone, the first two corrected in full, the next two by the power 0.7, all "
    "by 1,520 to 4,000 samples of the same seeds. 19,000 to 23,200 had 50% of captions empty, and moods were named as often as "
    "other small things; weights were averaged over half as many updates before 24,400. Shipped is the mean of the weights after "
    "24,400 and after 27,400 updates: styles strayed to opposite sides in their samples. Five words that no caption contains were "
    "taken out of the vocabulary of text encoder and rewards. The proxy's updates against attacks were 1,200 in three cycles, the "
    "first 400 of them against three large steps from anywhere. The autoencoder's first phase weighed L2 by 4, with latent noise "
    "0.03, and its decoder had 32 channels and blocks (4, 1, 1). The shipped preference reward, judge and ruler were fitted before there "
    "was light; the reward and its LoRAs have the taste that is called fashion here.",
    ruler_steps=2_200,
    reward_steps=800,
    tuning_steps=52,
    kl=(0.0, 0.1, 0.3, 1.0, 3.0, 10.0),
    checkpoints=(8, 12, 16, 20, 28, 36),
)  # fmt: skip

GPU = Preset(
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
    tuning_steps=120,
    kl=(0.0, 0.1, 0.3, 1.0, 3.0, 10.0),
    checkpoints=(10, 20, 40, 60, 80, 100),
)

PRESETS = {preset.name: preset for preset in (CPU, GPU)}
