"""Resident memory while the app switches between two models: ``python -m tests.benchmarks.switching --megabytes 100``.

Builds two Stable Diffusion pipelines of that size with random weights, loads A, B, A, B as ``aig.published.pipelines`` does,
each with a fused LoRA and each released before the next, and prints the resident memory after every step.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from aig.published import pipelines
from tests import families


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def make(folder: Path, megabytes: int) -> None:
    pipe = families.build("sd")
    width = 32 * round((megabytes * 1e6 / 4 / 340) ** 0.5 / 32)  # about 340 width^2 weights
    pipe.unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(width, width), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    families.lora(pipe, folder / "lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    megabytes = parser.parse_args().megabytes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in "AB":
            make(Path(folder) / name, megabytes)
        pipelines.release()
        print(f"without a model {resident():.0f} MB")
        for name in "ABAB":
            pipe = pipelines.load(Path(folder) / name, "StableDiffusionPipeline")
            tuning = pipelines.tuned(pipe, families.source("lora"), Path(folder) / name, mode="fused")
            pipe("a", num_inference_steps=1, height=16, width=16, output_type="latent")
            print(f"with {name} {resident():.0f} MB")
            pipelines.release(pipe, *tuning.holds)
            print(f"released {name} {resident():.0f} MB")


if __name__ == "__main__":
    main()
