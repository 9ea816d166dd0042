"""The samplers of CoDe: finite and right at every step count, on every scheduler setting that published models come with."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from aig.assets import ASSETS
from aig.method import families

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
STABLE = {**SD, "set_alpha_to_one": False}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
PORTRAITS = json.loads((ASSETS / "portraits/scheduler/scheduler_config.json").read_text())
DIFFUSION = {
    "embedded world": lambda: DPMSolverMultistepScheduler.from_config(PORTRAITS),
    "SD 1.5": lambda: PNDMScheduler(**STABLE, skip_prk_steps=True),
    "SD 2.1": lambda: DDIMScheduler(**STABLE, clip_sample=False, prediction_type="v_prediction"),
    "SD 2.1, zero terminal SNR": lambda: DDIMScheduler(**STABLE | ZERO, clip_sample=False, prediction_type="v_prediction"),
    "SDXL": lambda: EulerDiscreteScheduler(**SD, timestep_spacing="leading"),
    "SDXL, zero terminal SNR": lambda: EulerDiscreteScheduler(**SD | ZERO, prediction_type="v_prediction"),
    "PixArt-Sigma": lambda: DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    "cosine, trailing": lambda: DDIMScheduler(**COSINE, timestep_spacing="trailing"),
    "cosine, linspace": lambda: DDIMScheduler(**COSINE, timestep_spacing="linspace"),
    "cosine, zero terminal SNR": lambda: DDIMScheduler(**COSINE | ZERO),
}
FLOWS = {
    "FLUX.1 schnell": lambda: FlowMatchEulerDiscreteScheduler(shift=1.0),
    "FLUX.1 dev": lambda: FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    "SD 3.5": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "Sana": lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}
SETTINGS = DIFFUSION | FLOWS
PICTURE = torch.linspace(-2, 2, 8)


def output(sampler: object, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The exact prediction of a model that knows one picture only."""
    if isinstance(sampler, FlowMatchEulerDiscreteScheduler):  # x = (1 - sigma) picture + sigma noise, predicted: noise - picture
        return (x - PICTURE) / sampler.sigmas[sampler.timesteps.tolist().index(float(t))]
    alpha2 = sampler.alphas_cumprod[t]
    alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
    noise = (x - alpha * PICTURE) / sigma
    return noise if sampler.config.prediction_type == "epsilon" else alpha * noise - sigma * PICTURE


def run(sampler: object, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(steps)
    sampler.set_timesteps(steps, **{"mu": 0.8} if sampler.config.get("use_dynamic_shifting") else {})
    assert len(sampler.timesteps) == steps
    x = torch.randn(1, 8, generator=generator)
    for t in sampler.timesteps:
        x = sampler.step(output(sampler, x, t), t, x, generator=generator).prev_sample
        assert torch.isfinite(x).all(), f"not finite after timestep {t} of {steps} steps"
    return x


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_stochastic_sampler_ends_at_the_only_picture_with_every_step_count(setting):
    sampler = families.stochastic(SETTINGS[setting]())
    for steps in range(1, 101):
        torch.testing.assert_close(run(sampler, steps)[0], PICTURE, atol=1e-3, rtol=0)


@pytest.mark.parametrize("setting", DIFFUSION)
def test_a_step_of_the_stochastic_sampler_is_ddim_with_eta_1(setting):
    sampler = families.stochastic(DIFFUSION[setting]())
    for steps in (2, 5, 20, 61):
        sampler.set_timesteps(steps)
        for t, following in zip(sampler.timesteps, sampler.timesteps[1:]):
            x, noise = torch.randn(1, 8), torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
            stepped = sampler.step(output(sampler, x, t), t, x, generator=torch.Generator().manual_seed(0)).prev_sample
            torch.testing.assert_close(stepped, ddim(sampler, x, noise, t, following), atol=1e-4, rtol=0)


def ddim(sampler: object, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Equations 12 and 16 of arXiv 2010.02502 with eta = 1 for the model of ``output``, in 64 bits."""
    now, then = (sampler.alphas_cumprod[i].double() for i in (t, following))
    variance = (1 - then) / (1 - now) * (1 - now / then)
    predicted = (x - now.sqrt() * PICTURE) / (1 - now).sqrt()
    kept = (1 - then - variance).clamp(min=0).sqrt()
    return (then.sqrt() * PICTURE + kept * predicted + variance.sqrt() * noise).float()
