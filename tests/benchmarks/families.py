"""``python -m tests.benchmarks.families --size true``: base, tuned and AIG side by side against the naive way.

Time and memory of three columns of four images, 25 steps, guidance on, AIG power_2, random weights: of the true
architectures on a CUDA GPU, or tiny on a CPU, whose ratios say little. Ours is one ``sample``, on one set of base
weights with a LoRA switched in, or with a fused twin, as fast and as large as a second denoiser. Naive is two denoisers
and three stock calls, AIG evaluating both at every step; in the same dtype, and in the stock float32. Every way runs in
a process of its own, first once unmeasured.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import time
import warnings
from dataclasses import dataclass
from itertools import cycle

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from aig.method import adapters, schedules
from aig.method.budget import Budget
from aig.method.sampling import Trajectory
from tests import families, tiny
from tests.sampled import result

PROMPT, SEEDS, SCHEDULES = "a cat", (1, 2, 3, 4), ("base", "draft", "power_2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to sample the three columns."""

    model: str  # sd or sdxl
    size: str  # tiny or true
    naive: bool
    fused: bool
    dtype: str
    steps: int
    guidance: float
    repeats: int
    rows: int | None
    images: int | None


def true_pipeline(model: str) -> DiffusionPipeline:
    """Stable Diffusion 1.5 or SDXL with random weights; only the words are few."""
    tokenizer = tiny.clip_tokenizer(77)
    clip_l = CLIPTextConfig(**tiny.IDS, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512 if model == "sd" else 1024,
        scaling_factor=0.18215 if model == "sd" else 0.13025,
    )
    if model == "sd":
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(clip_l),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            scheduler=DDIMScheduler(**families.DIFFUSION, clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    big_g = CLIPTextConfig(
        **tiny.IDS, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        projection_dim=1280, hidden_act="gelu",
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(clip_l),
        text_encoder_2=CLIPTextModelWithProjection(big_g),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**families.DIFFUSION, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def columns(steps: int) -> list[Trajectory]:
    return [Trajectory(name=name, shares=schedules.shares(name, steps)) for name in SCHEDULES]


@torch.no_grad()
def naive(pipe: DiffusionPipeline, tuned: torch.nn.Module, setting: Setting) -> None:
    """The columns one after the other; both models at every step of the last."""
    base = pipe.unet.forward
    shares = cycle(schedules.shares(SCHEDULES[-1], setting.steps))

    def mixed(*args, **kwargs):
        return (torch.lerp(base(*args, **kwargs)[0], tuned(*args, **kwargs)[0], next(shares)),)

    for forward in (base, tuned.forward, mixed):
        pipe.unet.forward = forward
        pipe(
            [PROMPT] * len(SEEDS),
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        )
    del pipe.unet.forward


def measure(setting: Setting) -> dict[str, float]:
    """Seconds of the fastest of some runs, the peak memory in bytes, and the seconds of switching a LoRA once."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    gpu, before = torch.cuda.is_available(), resident()
    with torch.device("cuda" if gpu else "cpu"):
        pipe = true_pipeline(setting.model) if setting.size == "true" else families.build(setting.model)
    pipe.to("cuda" if gpu else "cpu", DTYPES[setting.dtype]).set_progress_bar_config(disable=True)
    found: dict[str, float] = {}
    if not setting.naive:
        pipe.unet.to(memory_format=torch.channels_last)
    tuned = None
    if setting.naive or setting.fused:
        tuned = copy.deepcopy(pipe.unet)
    else:
        rank = 32 if setting.size == "true" else 2
        lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=families.LORA.target_modules)
        inject_adapter_in_model(lora, pipe.unet)
        pipe.unet.to(DTYPES[setting.dtype])
        found["switch"] = switching(pipe.unet)

    def run() -> None:
        if setting.naive:
            naive(pipe, tuned, setting)
        else:
            result(
                pipe,
                columns(setting.steps),
                prompt=PROMPT,
                seeds=SEEDS,
                steps=setting.steps,
                guidance=setting.guidance,
                tuned=tuned,
                budget=Budget(rows=setting.rows, images=setting.images),
            )

    times, clock = [], time.perf_counter if gpu else time.process_time  # of one thread, whatever else is running
    for _ in range(1 + setting.repeats):
        if gpu:
            torch.cuda.synchronize()
        start = clock()
        run()
        if gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    memory = torch.cuda.max_memory_allocated() if gpu else resident() - before
    return found | {"seconds": min(times[1:]), "memory": memory}


def resident() -> int:
    """The highest resident memory of this process so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def switching(denoiser: torch.nn.Module) -> float:
    """Seconds that it takes to switch the LoRA and back, around a model that does nothing."""
    denoiser.forward = lambda: None
    tuned = adapters.pair(denoiser)[1]
    del denoiser.forward
    start = time.process_time()
    for _ in range(20):
        tuned()
    return (time.process_time() - start) / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "true"), default="tiny", help="true needs a CUDA GPU")
    parser.add_argument("--model", choices=("sd", "sdxl"), nargs="+", default=["sd", "sdxl"])
    parser.add_argument("--dtype", choices=tuple(DTYPES), default=None, help="of ours; bfloat16 on a GPU, else float32")
    parser.add_argument("--adapter", choices=("lora", "fused"), default="lora", help="of ours")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2 * len(SEEDS), help="model rows that ours computes at once")
    parser.add_argument("--images", type=int, default=1, help="images that ours decodes at once")
    options = parser.parse_args()
    if options.size == "true" and not torch.cuda.is_available():
        parser.error("--size true needs a CUDA GPU")
    dtype = options.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    for model in options.model:
        shared = {"model": model, "size": options.size, "steps": options.steps}
        shared |= {"guidance": 7.5 if model == "sd" else 5.0}
        shared |= {"repeats": options.repeats, "rows": options.rows, "images": options.images}
        found = {}
        for way, is_naive, kind in (("ours", False, dtype), ("naive", True, dtype), ("naive float32", True, "float32")):
            if way == "naive float32" and dtype == "float32":
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                fused = options.adapter == "fused" and not is_naive
                found[way] = pool.apply(measure, [Setting(**shared, naive=is_naive, dtype=kind, fused=fused)])
        ours = found["ours"]
        ratios = {
            f"{what} to {way}": round(ours[what] / max(found[way][what], 1e-9), 3)
            for way in found
            if way != "ours"
            for what in ("seconds", "memory")
        }
        chunks = 2 * -(-4 * len(SEEDS) // options.rows)  # either model: two columns, with and without prompt
        switched = chunks * ours.get("switch", 0.0) / (ours["seconds"] / options.steps)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        about = {"model": model, "size": options.size, "device": device, "dtype": dtype, "adapter": options.adapter}
        print(json.dumps(about | found | ratios | {"switching share": switched}))


if __name__ == "__main__":
    main()
