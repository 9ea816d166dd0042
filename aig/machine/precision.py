"""In which numbers the embedded world's denoiser computes: float32, or bfloat16 where the processor has instructions for it.

Measured at load within a second, on the denoiser itself; ``AIG_PRECISION`` fixes it instead. Weights, norms, latents, the decoder
and all judges stay float32: bfloat16 is what convolutions and linear layers multiply in (see ``packed``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from aig.machine.packed import multiply_in

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}  # by either of which a processor is quick in bfloat16
WORTH = 0.95  # of the time of float32: less is won by noise
ROWS, TOKENS = 8, 16  # of the evaluations that are timed


def choose(denoiser: nn.Module, *, wanted: str | None = None, flags: Sequence[str] | None = None, seconds: float = 0.8) -> str:
    """Set a denoiser to the precision that is quickest here, or to the one that is wanted, and name it.

    wanted: None for what AIG_PRECISION says, nothing for measuring; ValueError names the choices. flags: of the processor,
    None to look. On a GPU everything stays as it was loaded, and bfloat16 is refused.
    """
    wanted = os.environ.get("AIG_PRECISION", "") if wanted is None else wanted
    if wanted and wanted not in PRECISIONS:
        raise ValueError(f"Unknown precision {wanted!r} in AIG_PRECISION; choose one of: {', '.join(PRECISIONS)}.")
    if next(denoiser.parameters()).is_cuda:
        if wanted == "bfloat16":
            raise ValueError("AIG_PRECISION is bfloat16, which is for CPUs: on a GPU the embedded world computes in float32.")
        return "float32"
    if not wanted:
        quick = INSTRUCTIONS & set(processor_flags() if flags is None else flags)
        times = measured(denoiser, seconds) if quick else {}
        wanted = "bfloat16" if times and times["bfloat16"] < WORTH * times["float32"] else "float32"
    multiply_in(denoiser, PRECISIONS[wanted])
    return wanted


def measured(denoiser: nn.Module, seconds: float, run: Callable[[], object] | None = None) -> dict[str, float]:
    """The shortest time of an evaluation in each precision, in turns while the seconds last; at least two of each."""
    run = run or _evaluation(denoiser)
    times: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    start = time.perf_counter()
    while len(times["float32"]) < 2 or time.perf_counter() - start < seconds:
        for name, dtype in PRECISIONS.items():
            multiply_in(denoiser, dtype)
            if not times[name]:
                run()  # packs the weights
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    return {name: min(found) for name, found in times.items()}


def processor_flags() -> set[str]:
    """What the first processor can do, by Linux's names; empty where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _evaluation(denoiser: UNet2DConditionModel) -> Callable[[], object]:
    """One evaluation of a UNet of the embedded world's kind."""
    config = denoiser.config
    rng = torch.Generator().manual_seed(0)  # of its own: the global one is the caller's
    x = torch.randn(ROWS, config.in_channels, config.sample_size, config.sample_size, generator=rng)
    text = torch.randn(ROWS, TOKENS, config.cross_attention_dim, generator=rng)
    return torch.no_grad()(lambda: denoiser(x, torch.tensor(500), text, return_dict=False))
