"""Stage ``draft``: DRaFT (Clark et al., arXiv 2309.17400) on a reward, with the KL term of the paper, as LoRAs.

    loss = -r(x0) + kl * mean((v_tuned - v_base)^2) on the differentiated steps        (arXiv 2409.06493, DRaFT+)

Sampling runs without gradients; then the last step, the decoder and the reward are differentiated (K = 1). The last step can
change how a portrait is finished, not who it is, so an earlier step is differentiated as well, on the clean image that it predicts, as
ReFL does (Xu et al., arXiv 2304.05977). One LoRA for each tuned model and KL coefficient, all from the same seed; the loop is a
generator like every other stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from aig.method.frames import clean_latents
from aig.portraits.captions import MAX_TOKENS, caption
from aig.portraits.population import decode
from aig.portraits.rewards import build
from aig.training import device, fit, warm_hold
from aig.world import data
from aig.world.presets import World

RANK = 4
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out")
STEPS = 8  # of sampling in training
EARLY = 1  # random earlier steps that are differentiated too; without those at high noise, tuning turns to texture
GUIDANCE = 3.0
BATCH = 8
RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a model is tuned on: a weighted sum of rewards, by as many differentiated earlier steps beside the last one."""

    rewards: Mapping[str, float]
    early: int = EARLY


MIXTURES = (1, 2, 3, 4, 5)  # sixths of ``preference``, the others of ``fashion``
#: The models that are shipped, and those that only the evaluation needs: the paper's own form, which differentiates one step, and
#: mixtures of the two tastes.
SHIPPED = {name: Objective(rewards={name: 1.0}) for name in ("preference", "fashion", "vivid")}
STUDIED = {"last-step": Objective(rewards={"preference": 1.0}, early=0)} | {
    f"mixture-{n}": Objective(rewards={"preference": n / 6, "fashion": 1 - n / 6}) for n in MIXTURES
}
OBJECTIVES = SHIPPED | STUDIED


def name_of(tuning: str, kl: float, updates: int | None = None) -> str:
    """File name stem of the LoRA of this tuned model with this KL coefficient, at its end or after some updates."""
    return f"{tuning}-kl-{kl:g}" + ("" if updates is None else f"-after-{updates}")


def train(preset: World, tuning: str = "") -> Iterator[dict[str, float]]:
    """Tune all LoRAs, or those of one tuned model, each KL coefficient of the preset, and save them to ``work/loras``.

    Those that only the evaluation needs are tuned without KL alone. Raises ValueError for an unknown tuned model.
    """
    if tuning and tuning not in OBJECTIVES:
        raise ValueError(f"Unknown tuned model {tuning!r}; choose one of: {', '.join(OBJECTIVES)}.")
    for name in [tuning] if tuning else OBJECTIVES:
        for kl in preset.kl if name in SHIPPED else preset.kl[:1]:
            yield from train_one(preset, name, kl)


def train_one(preset: World, name: str, kl: float) -> Iterator[dict[str, float]]:
    """Tune one LoRA; of a run without KL the checkpoints are saved as well."""
    objective = OBJECTIVES[name]
    pipe = StableDiffusionPipeline.from_pretrained(preset.work / "pipeline", use_safetensors=True, safety_checker=None)
    pipe.to(device())
    unet, scheduler = pipe.unet.to(memory_format=torch.channels_last), pipe.scheduler
    for part in (unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    torch.manual_seed(preset.seed)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(LAYERS)))
    rewards = {loaded(preset, reward): weight for reward, weight in objective.rewards.items()}
    _, labels = data.load(preset)

    def loss(step: int, rng: torch.Generator) -> Iterator[dict[str, torch.Tensor]]:
        rows = labels[torch.randint(preset.drawings, (BATCH,), generator=rng).numpy()]
        prompts = [caption(decode(row), rng, 0.2) for row in rows]
        latents = torch.randn(BATCH, preset.latent_channels, *[preset.latent_size] * 2, generator=rng).to(device())
        text = embedded(pipe, prompts)
        states = trajectory(unet, scheduler, latents, text)
        last = len(states) - 1
        chosen = [last, *torch.randint(last, (objective.early,), generator=rng).tolist()]
        for i in chosen:
            x0, gap = predicted(unet, scheduler, *states[i], text)
            pictures = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample.div(2).add(0.5).clamp(0, 1)
            r = sum(weight * reward(pictures, prompts).mean() for reward, weight in rewards.items())
            yield {"loss": (-r + kl * gap) / len(chosen), "reward": r.detach() * (i == last), "gap": gap.detach() / len(chosen)}

    def save(updates: int | None = None) -> None:
        state = get_peft_model_state_dict(unet)
        StableDiffusionPipeline.save_lora_weights(preset.work / "loras", state, weight_name=f"{name_of(name, kl, updates)}.safetensors")

    folder, seed = preset.work / f"draft-{name_of(name, kl)}", preset.seed + 5
    *before, last = preset.updates(name)
    for row in fit(unet, loss, cycles=((last, RATE),), rate=warm_hold, folder=folder, seed=seed, weight_decay=0.0):
        if kl == 0 and row["step"] in before:
            save(int(row["step"]))
        yield row
    save()


def loaded(preset: World, reward: str) -> torch.nn.Module:
    """A frozen reward of the ``rewards`` stage."""
    model = build(reward).to(device()).eval().requires_grad_(False)
    model.load_state_dict(load_file(preset.work / "rewards" / f"{reward}.safetensors"))
    return model


@torch.no_grad()
def embedded(pipe, prompts: list[str]) -> torch.Tensor:
    """The text encoder's states (2B, tokens, D): of no prompt, then of the prompts."""
    both = [""] * len(prompts) + prompts
    ids = pipe.tokenizer(both, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids.to(pipe.device))[0]


@torch.no_grad()
def trajectory(unet, scheduler: DPMSolverMultistepScheduler, latents, text) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The noisy latents (B, C, h, w) and the timestep at which each sampling step begins."""
    scheduler.set_timesteps(STEPS, device=latents.device)
    x, states = latents * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        states.append((x, t))
        if len(states) < STEPS:
            x = scheduler.step(guided(unet, x, t, text), t, x, return_dict=False)[0]
    return states


def predicted(unet, scheduler: DPMSolverMultistepScheduler, x, t, text) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latents (B, C, h, w) that the tuned model predicts at a step, and mean (v_tuned - v_base)^2; differentiable.

    Predictions are compared after guidance, as the authors' code does.
    """
    tuned = guided(unet, x, t, text)
    unet.disable_adapters()
    with torch.no_grad():
        base = guided(unet, x, t, text)
    unet.enable_adapters()
    return clean_latents(scheduler, tuned, t, x), (tuned - base).square().mean()


def guided(unet, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The prediction (B, ...) under classifier-free guidance."""
    without, named = unet(torch.cat([x, x]), t, text, return_dict=False)[0].chunk(2)
    return without + GUIDANCE * (named - without)
