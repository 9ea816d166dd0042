"""Stage ``autoencoder``: a stock AutoencoderTiny that turns a drawing into a small grid of latents and back.

The encoder starts from the principal components of patches (4x4 pixels with three levels) and is trained on with the decoder.
The loss is L1 + L2 + the L1 of image gradients (crisp edges); a little noise on the latents makes the decoder robust to the
denoiser's errors. Then the encoder is frozen, so that latents stay what they are, and the decoder alone trains on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn import functional as F

from aig.training import device, fit
from aig.world import data
from aig.world.presets import World

LATENT_NOISE = 0.02


def build(preset: World) -> AutoencoderTiny:
    """An untrained autoencoder; latents are (B, latent_channels, latent_size, latent_size)."""
    levels, patch = preset.vae_levels, 3 * 4 ** (preset.vae_levels - 1)
    return AutoencoderTiny(
        encoder_block_out_channels=(patch,) * levels,
        decoder_block_out_channels=(preset.vae_channels,) * levels,
        num_encoder_blocks=(*[0] * (levels - 1), 1),
        num_decoder_blocks=preset.vae_blocks,
        latent_channels=preset.latent_channels,
    )


@torch.no_grad()
def start_from_pca(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    """Set the encoder to the principal components of patches, where its training starts.

    The strided convolutions become space-to-channel maps, which lose nothing, and the last one projects. Channels are
    whitened half-way (standard deviation to the power 1/2): full whitening would spend the denoiser on invisible detail.
    """
    *strided, project = [layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d)]
    for level, conv in enumerate(strided):
        conv.weight.zero_()
        channels = 3 * 4 ** max(level - 1, 0)
        for i in range(channels if level == 0 else 4 * channels):
            corner, channel = divmod(i, channels)
            conv.weight[i, channel, 1 + corner // 2, 1 + corner % 2] = 1
    strided[0].bias.zero_()
    for block in vae.encoder.layers:
        if not isinstance(block, nn.Conv2d):
            block.conv[-1].weight.zero_()
            block.conv[-1].bias.zero_()
    patches = vae.encoder.layers[:-1](images.add(1).div(2)).permute(0, 2, 3, 1).flatten(0, 2)
    mean, values, vectors = patches.mean(0), *torch.linalg.eigh(patches.T.cov())
    keep = vae.config.latent_channels
    vectors, std = vectors[:, -keep:], values[-keep:].sqrt()
    matrix = vectors * (std.rsqrt() / std.max().sqrt())  # the largest component gets unit standard deviation
    project.weight.zero_()
    project.weight[:, :, 1, 1] = matrix.T
    project.bias.copy_(-mean @ matrix)


def to_tensor(images) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, for images in [-1, 1] clipped to their range."""
    mse = (a.clamp(-1, 1) - b.clamp(-1, 1)).div(2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.log10()).mean())


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def train(preset: World, batch: int = 16) -> Iterator[dict[str, float]]:
    """Train, resume and finally save to ``work/vae``."""
    images, _ = data.load(preset)
    torch.manual_seed(preset.seed)
    vae = build(preset)
    start_from_pca(vae, to_tensor(images[: min(1_000, preset.drawings)]))
    vae.to(device(), memory_format=torch.channels_last)

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        x = to_tensor(images[torch.randint(preset.drawings, (batch,), generator=rng).numpy()]).to(device())
        z = vae.encoder(x)
        y = vae.decoder(z + LATENT_NOISE * torch.randn(z.shape, generator=rng).to(z))
        edges = sum((a - b).abs().mean() for a, b in zip(_edges(x), _edges(y), strict=True))
        l1, l2 = (x - y).abs().mean(), F.mse_loss(y, x)
        return {"loss": l1 + 16 * l2 + 0.5 * edges, "mse": l2.detach(), "std": z.detach().std()}

    cycles, seed = ((preset.vae_steps, 3e-3),), preset.seed
    yield from fit(vae, loss, cycles=cycles, folder=preset.work / "autoencoder", seed=seed, ema=0.998)
    vae.encoder.requires_grad_(False)
    cycles, seed = ((preset.decoder_steps, 1e-3),), preset.seed + 6
    yield from fit(vae.decoder, loss, cycles=cycles, folder=preset.work / "decoder", seed=seed, ema=0.998)
    sample = to_tensor(images[: min(1_000, preset.drawings)]).to(device())
    with torch.no_grad():
        z = vae.encoder(sample)
        vae.register_to_config(scaling_factor=round(float(1 / z.std()), 4))
    vae.save_pretrained(preset.work / "vae")


@torch.no_grad()
def encode_all(vae: AutoencoderTiny, images, batch: int = 250) -> torch.Tensor:
    """All drawings as scaled latents (N, C, h, w) float16."""
    parts = [vae.encoder(to_tensor(images[i : i + batch]).to(device())) for i in range(0, len(images), batch)]
    return torch.cat(parts).mul(vae.config.scaling_factor).half().cpu()


def reconstructed(vae: AutoencoderTiny, x: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1], encoded and decoded again."""
    return vae.decoder(vae.encoder(x * 2 - 1)).div(2).add(0.5).clamp(0, 1)  # the stock call would clamp and round the latents


@torch.no_grad()
def evaluate(vae: AutoencoderTiny, images) -> float:
    """PSNR in dB of the reconstruction of ``images`` (N, H, W, 3) uint8."""
    values = []
    for i in range(0, len(images), 250):
        x = to_tensor(images[i : i + 250]).to(device())
        values += [psnr(vae.decoder(vae.encoder(x)), x)] * len(x)
    return sum(values) / len(values)
