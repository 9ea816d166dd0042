"""What differs between model families, each fact in one function; everything else in this package is the same for all.

The facts are those of the pipelines of diffusers 0.42: Stable Diffusion 1.x and 2.x, SDXL, SD3, FLUX.1, PixArt-Sigma
and Sana. They are read from a pipeline's parts and not from its name, so that its relatives work too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from aig.method.adapters import denoiser

DISTILLED = ("FluxPipeline",)  # for guidance, which is an input or nothing: they never ask for a second prompt branch
PROMPT_LAST = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline",
    "SanaPipeline",
)  # fmt: skip
PROMPT_FIRST = ("FluxPipeline",)
SCHNELL_TOKENS = 256  # the timestep-distilled FLUX reads no more (its model card)


def prompt_comes(pipe: DiffusionPipeline) -> str:
    """Where the predictions with the prompt are: "last" of the rows of one call, or "first" of two calls. ValueError if unknown."""
    name = type(pipe).__name__
    if name in (*PROMPT_LAST, *PROMPT_FIRST):
        return "last" if name in PROMPT_LAST else "first"
    raise ValueError(f"which of {name}'s predictions have the prompt is not known: leave guided and texts out")


def default_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """Height and width of the images in pixels, by the size that the denoiser was trained at."""
    size = pipe.default_sample_size if _packs(pipe) else denoiser(pipe).config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def latent_shape(pipe: DiffusionPipeline, size: int | None = None) -> tuple[int, int, int]:
    """(C, h, w) of one image's latents, of square images when size, their height and width, is given.

    Raises ValueError unless size is a positive multiple of the side of the denoiser's patches, in pixels.
    """
    config = denoiser(pipe).config
    side = pipe.vae_scale_factor * (2 if _packs(pipe) else config.get("patch_size") or 1)
    if size is not None and (size < side or size % side):
        raise ValueError(f"the image size must be a positive multiple of {side} for this model, not {size}")
    height, width = default_size(pipe) if size is None else (size, size)
    channels = config.in_channels // 4 if _packs(pipe) else config.in_channels
    return channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def laid_out(pipe: DiffusionPipeline, noise: Tensor) -> Tensor:
    """Unit noise (B, C, h, w) as the pipeline takes it: in the denoiser's dtype, for FLUX packed to (B, hw/4, 4C)."""
    if "timestep_scale" in denoiser(pipe).config:  # Sana's latents are float32, whatever its transformer is
        return noise
    noise = noise.to(denoiser(pipe).dtype)
    return pipe._pack_latents(noise, *noise.shape) if _packs(pipe) else noise


def unpacked(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents as (B, C, h, w); those that FLUX packs must be of square images."""
    if not _packs(pipe) or latents.ndim != 3:
        return latents
    side = 2 * math.isqrt(latents.shape[1]) * pipe.vae_scale_factor
    return pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor)


def call_options(pipe: DiffusionPipeline, size: int | None) -> dict[str, object]:
    """Arguments that only some pipelines' calls have, and the image size."""
    height, width = default_size(pipe) if size is None else (size, size)
    options: dict[str, object] = {"height": height, "width": width}
    if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
        options["use_resolution_binning"] = False  # PixArt and Sana would round the size to that of an aspect ratio
    if _packs(pipe) and not denoiser(pipe).config.guidance_embeds:
        options["max_sequence_length"] = SCHNELL_TOKENS
    return options


def for_decoder(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) or packed, at the scale and in the dtype that the decoder wants: z * std / scale + mean."""
    config, z = pipe.vae.config, unpacked(pipe, latents)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(z) for values in (mean, std))
        return (z * std / config.scaling_factor + mean).to(pipe.vae.dtype)
    return (z / config.scaling_factor + (config.get("shift_factor") or 0.0)).to(pipe.vae.dtype)


@contextmanager
def wide_decoder(pipe: DiffusionPipeline) -> Generator[None]:
    """SDXL's decoder overflows in float16 and is float32 for a while; all others stay as they are."""
    vae = pipe.vae
    narrow = hasattr(pipe, "upcast_vae") and vae.dtype == torch.float16 and vae.config.force_upcast
    if narrow:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if narrow:
            vae.to(torch.float16)


class Ancestral(DDPMScheduler):
    """DDPM: what DDIM is with eta = 1, without its root of 1 - alpha_prev - sigma^2, which rounding makes negative."""

    def set_timesteps(self, num_inference_steps: int, *args, **kwargs) -> None:
        """As many steps as asked for: where 1000 is divided by 61, trailing spacing rounds to one more, a timestep of -1."""
        super().set_timesteps(num_inference_steps, *args, **kwargs)
        self.timesteps = self.timesteps[:num_inference_steps]


def stochastic(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A first-order sampler that adds fresh noise at every step, for the same model.

    DDPM for diffusion, for flows the Euler step that draws the noise of x_t anew.
    """
    config = scheduler.config
    if "prediction_type" in config and config.prediction_type != "flow_prediction":
        return Ancestral.from_config(config, clip_sample=False, variance_type="fixed_small")
    shift = config.get("flow_shift", config.get("shift", 1.0))  # as DPM-Solver and as Euler call it
    return FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift, stochastic_sampling=True)


def _packs(pipe: DiffusionPipeline) -> bool:
    """Whether this is FLUX or one of its relatives."""
    return hasattr(pipe, "_pack_latents")
