"""CoDe, blockwise best-of-N: the base model steered by a reward, without tuning (Singh et al., arXiv 2502.00968).

Every image has N candidates that start from the same noise and part by the noise of a stochastic sampler: DDPM, for
flows Euler steps that draw the noise anew.
Every few steps, and at the end, the candidate whose predicted clean image has the highest reward is kept and copied
over the others. That prediction is the one that the next step needs anyway, so a selection costs no evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from aig.method import families
from aig.method.frames import Frame, Settings, clean_latents, decode, finite, initial_latents, watched
from aig.method.guidance import annealed
from aig.method.replaced import replaced
from aig.method.steps import step_of

Reward = Callable[[Tensor, Sequence[str]], Tensor]  # images (B, 3, H, W) in [0, 1] and B prompts -> (B,)


@dataclass(frozen=True, kw_only=True)
class Code:
    """A column of CoDe images."""

    candidates: int  # of each image
    reward: Reward
    block: int = 4  # steps between two selections
    tuned: Callable | None = None  # only says how to reach the base model, as in ``annealed``; it is never evaluated


def best_of(pipe: DiffusionPipeline, code: Code, settings: Settings, hand: Callable[[Frame], None]) -> None:
    """Sample one column of images, one a seed, and hand over a frame after every step; those on the way show the first candidate."""
    seeds, steps, start = settings.seeds, settings.steps, time.perf_counter()
    owner = [k for k in range(len(seeds)) for _ in range(code.candidates)]
    generators = [generator(seeds[k], i % code.candidates) for i, k in enumerate(owner)]
    pictures = lambda latents: decode(pipe, latents, range(len(latents)), settings.budget.images)  # noqa: E731

    def best(latents: Tensor) -> Tensor:
        """For each image the row of its best candidate, (N,), by clean latents."""
        scores = code.reward(pictures(latents), [settings.prompt] * len(owner)).view(len(seeds), code.candidates)
        return scores.argmax(dim=1).cpu() + code.candidates * torch.arange(len(seeds))

    def show(step: int, latents: Callable[[], Tensor]) -> None:
        seconds = time.perf_counter() - start
        hand(Frame(step=step, steps=steps, rows=ledger.total, seconds=seconds, decode=lambda: pictures(latents())[None]))

    def see(output: Tensor, timestep: Tensor, latents: Tensor) -> None:
        step = step_of(pipe.scheduler, timestep)
        if step and step % code.block == 0:
            kept = best(clean_latents(pipe.scheduler, output, timestep, latents)).repeat_interleave(code.candidates)
            for tensor in (output, latents):  # in place: the sampler goes on from here
                tensor.copy_(tensor[kept])
        if step + 1 < steps:
            show(step + 1, lambda: clean_latents(pipe.scheduler, output, timestep, latents)[:: code.candidates])

    with (
        replaced(pipe, "scheduler", families.stochastic(pipe.scheduler)),
        annealed(pipe, [0.0] * steps, code.tuned, rows_at_once=settings.budget.rows) as ledger,
        watched(pipe, see, generators),
    ):
        latents = pipe(
            prompt=settings.prompt,
            num_images_per_prompt=len(owner),
            num_inference_steps=steps,
            guidance_scale=settings.guidance,
            latents=families.laid_out(pipe, initial_latents(pipe, seeds, settings.size)[owner]),
            generator=generators,
            output_type="latent",
            **families.call_options(pipe, settings.size),
        ).images
    finite(latents)
    chosen = latents[best(latents)]
    show(steps, lambda: chosen)


def generator(seed: int, candidate: int) -> torch.Generator:
    """The noise of one candidate of one image; torch uses 32 bits of a seed, so the two numbers are hashed into them."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, candidate)).generate_state(1)[0]))
