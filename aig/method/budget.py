"""How much of a run fits into the memory of a GPU at once, found by probes of one and two rows when a model is loaded.

The memory of a network grows linearly with its rows, so what one row and two take at their peak says what n take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from aig.method import families
from aig.method.adapters import denoiser

RESERVE = 0.15  # of the free memory, for fragments and for what a run keeps besides


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that is computed in one call; None for all."""

    rows: int | None = None  # of a denoiser: one image, one prompt branch
    images: int | None = None  # of the decoder


UNLIMITED = Budget()


def most(free: float, peak: Callable[[int], float]) -> int | None:
    """How many rows fit into ``free``, by peak(n), what n rows take at their highest, at n = 1 and 2; both in bytes.

    At least 1, for what does not fit one by one does not fit at all; None when rows take nothing.
    """
    one, two = peak(1), peak(2)
    return max(1, 1 + int((free - one) // (two - one))) if two > one else None


@torch.no_grad()
def measured(
    pipe: DiffusionPipeline,
    size: int | None = None,
    *,
    free: Callable[[], float] | None = None,
    peak: Callable[[Callable[[], object]], float] | None = None,
) -> Budget:
    """The budget of a pipeline with images of ``size`` pixels, for the memory that is free now.

    free, peak: the free bytes, and those that a function takes at its highest; None for those of the pipeline's CUDA
    GPU, and on another device there is no limit then. Each network computes one row and two; the pipeline stays as it
    is.
    """
    device = denoiser(pipe).device
    if peak is None and device.type != "cuda":
        return UNLIMITED
    free, peak = free or (lambda: cuda_free(device)), peak or (lambda run: cuda_peak(device, run))

    def denoise(rows: int) -> float:
        args, kwargs = denoiser_inputs(pipe, rows, size)
        return peak(lambda: denoiser(pipe)(*args, **kwargs))

    def decode(images: int) -> float:
        noise = torch.zeros(images, *families.latent_shape(pipe, size), device=device)
        with families.wide_decoder(pipe):
            z = families.for_decoder(pipe, families.laid_out(pipe, noise))
            return peak(lambda: pipe.vae.decode(z, return_dict=False))

    usable = (1 - RESERVE) * free()
    return Budget(rows=most(usable, denoise), images=most(usable, decode))


def least(pipe: DiffusionPipeline, size: int | None = None) -> int:
    """Bytes that one row of the denoiser takes at its highest on the pipeline's CUDA GPU; 0 on another device, where all fits."""
    device = denoiser(pipe).device
    if device.type != "cuda":
        return 0
    args, kwargs = denoiser_inputs(pipe, 1, size)
    with torch.no_grad():
        return int(cuda_peak(device, lambda: denoiser(pipe)(*args, **kwargs)))


def denoiser_inputs(pipe: DiffusionPipeline, rows: int, size: int | None = None) -> tuple[tuple, dict]:
    """What the pipeline gives its denoiser at the first step of an unguided call for so many images."""

    class Caught(Exception):
        pass

    def catch(module, args, kwargs):
        raise Caught(args, kwargs)

    bar = getattr(pipe, "_progress_bar_config", None)
    handle = denoiser(pipe).register_forward_pre_hook(catch, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe(
            prompt="",
            num_images_per_prompt=rows,
            num_inference_steps=2,
            guidance_scale=1.0,
            latents=families.laid_out(pipe, torch.zeros(rows, *families.latent_shape(pipe, size))),
            output_type="latent",
            **families.call_options(pipe, size),
        )
    except Caught as caught:
        return caught.args
    finally:
        handle.remove()
        pipe.set_progress_bar_config(**bar or {})
    raise ValueError(f"{type(pipe).__name__} made a picture without asking its denoiser")


def cuda_free(device: torch.device) -> float:
    """Bytes that torch can still allocate on the GPU, its own cache included."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def cuda_peak(device: torch.device, run: Callable[[], object]) -> float:
    """Bytes beyond those allocated now that a function takes at its highest, on its second call: the first prepares."""
    run()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
