"""DRaFT+ on any stock diffusers text-to-image pipeline: tune a LoRA on a differentiable reward, held back by a KL term.

    loss = -r(x0) + kl * mean((eps_tuned - eps_base)^2) on the differentiated steps

(DRaFT-K, Clark et al., arXiv 2309.17400; with the KL term, Jena et al., arXiv 2409.06493.) The stock pipeline samples
and decodes, as for everyone; only its ``torch.no_grad`` is taken off, and its denoiser is differentiated at the last K
steps alone:

    for row in draft(pipe, reward, prompts, DraftSettings(updates=1000, kl=0.1), out=folder):
        print(row["reward"])

Defaults are those of the authors' code (NeMo-Aligner, ``draftp_sd.yaml`` and ``megatron_sd_draftp_model.py``) and
paper. The KL term compares predictions after guidance, as theirs does. Training needs one process; several GPUs would
train several LoRAs.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from aig.method import adapters, families
from aig.method.steps import counted
from aig.published import folders
from aig.published.draft_settings import DraftSettings, begin, resolved
from aig.training import fit, warm_hold

# Attention, of the image and, where a transformer keeps it apart, of the text.
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FILE = "pytorch_lora_weights.safetensors"


def draft(
    pipe: DiffusionPipeline,
    reward: Callable[[Tensor, Sequence[str]], Tensor],
    prompts: Sequence[str],
    settings: DraftSettings,
    *,
    out: Path,
    save_every: float = 60.0,
) -> Iterator[dict[str, float]]:
    """Tune a LoRA of the pipeline's denoiser, yielding step, loss, reward and gap (the KL term before its coefficient).

    reward: images (B, 3, H, W) in [0, 1] and B prompts -> (B,), differentiable in the images.
    out:    gets ``curve.jsonl``, a checkpoint every ``save_every`` seconds, at the end the LoRA in diffusers' format.
            A run that was killed goes on from its checkpoint, on a CPU to the same bits.

    The pipeline keeps the LoRA; its base weights do not change. Raises ValueError for settings out of range, a pipeline
    with a LoRA, a reward without gradients, and a folder with a run of other settings; FloatingPointError when the loss
    is not finite.
    """
    from accelerate import Accelerator

    settings = resolved(pipe, settings)
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("DRaFT needs prompts to tune on, and there are none.")
    begin(out, pipe, prompts, settings)
    accelerator = Accelerator(mixed_precision=settings.precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"DRaFT trains in one process, not in {accelerator.num_processes}.")
    pipe.to(accelerator.device)
    trained = attach(pipe, settings)

    def loss(update: int, rng: torch.Generator) -> Iterator[dict[str, Tensor]]:
        picked = [prompts[i] for i in torch.randint(len(prompts), (settings.batch,), generator=rng)]
        seeds = torch.randint(2**62, (settings.batch,), generator=rng).tolist()
        for start in range(0, settings.batch, settings.at_once):
            some, noises = (items[start : start + settings.at_once] for items in (picked, seeds))
            with torch.random.fork_rng():  # a reward may draw random crops
                torch.manual_seed(noises[0])
                with accelerator.autocast():
                    images, gap = sampled(pipe, some, noises, settings)
                r = rated(reward, images, some)
            share = len(some) / settings.batch
            yield {
                "loss": (settings.kl * gap - r.mean()) * share,
                "reward": r.detach().mean() * share,
                "gap": gap.detach() * share,
            }

    with _bare(pipe):
        yield from fit(
            nn.ParameterList(trained),
            loss,
            cycles=((settings.updates, settings.rate),),
            rate=warm_hold,
            folder=out,
            seed=settings.seed,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            clip=settings.clip,
            save_every=save_every,
        )
    save(pipe, out)


def attach(pipe: DiffusionPipeline, settings: DraftSettings) -> list[nn.Parameter]:
    """Give the denoiser a fresh LoRA in float32 and freeze all else; its parameters. Recomputing activations saves memory."""
    from diffusers.training_utils import cast_training_params

    denoiser = adapters.denoiser(pipe)
    if adapters.lora_layers(denoiser):
        raise ValueError("The pipeline already has a LoRA: tune from the base, and call unload_lora_weights() first.")
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        trained = _adapt(denoiser, settings.rank)
    cast_training_params(denoiser, torch.float32)  # updates of 1e-4 are lost in bfloat16
    for part in (denoiser, pipe.vae):
        if part._supports_gradient_checkpointing:
            part.enable_gradient_checkpointing()
    return trained


def sampled(pipe: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], settings: DraftSettings) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] by the stock pipeline, differentiable through its last K steps, and their mean gap.

    The noise of an image depends on its own seed alone.
    """
    call = type(pipe).__call__
    with torch.enable_grad(), differentiated(pipe, settings, images=len(prompts)) as gaps:
        images = call.__wrapped__(  # below the pipeline's torch.no_grad
            pipe,
            prompt=list(prompts),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            **families.call_options(pipe, settings.size),
        ).images
    return images.float(), torch.stack(gaps).mean()


@contextmanager
def differentiated(pipe: DiffusionPipeline, settings: DraftSettings, *, images: int) -> Generator[list[Tensor]]:
    """Within, the denoiser is differentiated at the last K steps alone.

    Yields a list that gets mean((eps_tuned - eps_base)^2) of each of those, both at the same x_t and after guidance.
    """
    denoiser, gaps = adapters.denoiser(pipe), []
    base, tuned = adapters.pair(denoiser)
    signature, before = inspect.signature(denoiser.forward), vars(denoiser).get("forward")

    def forward(*args, **kwargs):
        inputs = signature.bind(*args, **kwargs).arguments
        step, _ = clock.evaluation(inputs["timestep"])
        if step < settings.steps - settings.truncation:
            with torch.no_grad():
                output = tuned(*args, **kwargs)
            torch.clear_autocast_cache()  # of the LoRA in 16 bits, which has no gradient: torch before 2.9 would take it at the next step
            return output
        output = tuned(*args, **kwargs)
        with torch.no_grad():
            reference = base(*args, **kwargs)[0]
        x = next(iter(inputs.values()))
        gap = (output[0] - reference)[:, : x.shape[1]].float()  # PixArt's further channels are a variance, which no sampler reads
        if len(gap) == 2 * images:
            without, with_ = gap.chunk(2)
            gap = without + settings.guidance * (with_ - without)
        gaps.append(gap.square().mean())
        return output

    denoiser.forward = forward
    try:
        with counted(pipe, settings.steps) as clock:
            yield gaps
    finally:
        del denoiser.forward
        if before is not None:
            denoiser.forward = before


def rated(reward: Callable[[Tensor, Sequence[str]], Tensor], images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The rewards (B,). ValueError when they are not B, or do not depend on the images."""
    r = reward(images, prompts)
    if r.shape != (len(prompts),):
        raise ValueError(f"The reward must give {len(prompts)} numbers for {len(prompts)} images, not the shape {tuple(r.shape)}.")
    if not r.requires_grad:
        raise ValueError("The reward is not differentiable in the images, so DRaFT cannot use it.")
    return r.float()


def save(pipe: DiffusionPipeline, out: Path) -> Path:
    """Write the denoiser's LoRA in diffusers' format; the file, which is complete or not there."""
    from diffusers import StableDiffusion3Pipeline
    from peft.utils import get_peft_model_state_dict

    denoiser = adapters.denoiser(pipe)
    part = "unet" if getattr(pipe, "unet", None) is denoiser else "transformer"
    # PixArt's class cannot save one; the format of all transformers is the same
    saver = type(pipe) if hasattr(pipe, "save_lora_weights") else StableDiffusion3Pipeline
    saver.save_lora_weights(out, **{f"{part}_lora_layers": get_peft_model_state_dict(denoiser)}, weight_name=f"unfinished-{FILE}")
    os.replace(out / f"unfinished-{FILE}", out / FILE)
    return out / FILE


def outline(folder: Path | None, pipeline: str, prompts: Sequence[str], settings: DraftSettings) -> str:
    """Settings and sizes of a run, from the configuration of its denoiser alone; no weights are read."""
    import diffusers
    from accelerate import init_empty_weights

    lines = [f"{pipeline}, {len(prompts)} prompts", *(f"{name:12} {value}" for name, value in asdict(settings).items())]
    if folder is not None:
        parts = folders.check(folder, pipeline)
        part = "unet" if "unet" in parts else "transformer"
        kind = getattr(diffusers, parts[part])
        with init_empty_weights():
            denoiser = kind.from_config(kind.load_config(folder / part, local_files_only=True))
            total = sum(parameter.numel() for parameter in denoiser.parameters())
            tuned = sum(map(Tensor.numel, _adapt(denoiser, settings.rank)))
        lines.append(f"{'denoiser':12} {total / 1e6:,.1f} million parameters")
        lines.append(
            f"{'LoRA':12} {tuned / 1e6:,.2f} million parameters, {tuned * 4 / 1e6:,.1f} MB, with AdamW's state {tuned * 12 / 1e6:,.1f} MB"
        )
    rows = settings.batch * (settings.steps + 2 * settings.truncation)
    lines.append(f"{'an update':12} {rows:,} evaluations, each of two rows with guidance; {settings.updates * rows:,} in all")
    return "\n".join(lines)


def _adapt(denoiser: ModelMixin, rank: int) -> list[nn.Parameter]:
    """Add a fresh LoRA of the attention layers and freeze all else; its parameters."""
    from peft import LoraConfig, inject_adapter_in_model

    denoiser.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(LAYERS))
    if hasattr(denoiser, "add_adapter"):
        denoiser.add_adapter(config)
    else:  # PixArt's transformer, in diffusers' words, has no adapters
        inject_adapter_in_model(config, denoiser)
    return [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


@contextmanager
def _bare(pipe: DiffusionPipeline) -> Generator[None]:
    """Without safety checker and watermark, which work on arrays and would stop the gradient, while training."""
    with contextlib.ExitStack() as back:
        for name in ("safety_checker", "watermark"):
            if getattr(pipe, name, None) is not None:
                back.callback(setattr, pipe, name, getattr(pipe, name))
                setattr(pipe, name, None)
        yield
