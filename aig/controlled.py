"""CoDe, blockwise best-of-N: the base model steered by a reward, without tuning (Singh et al., arXiv 2502.00968).

Every image has N candidates that start from the same noise and part by the noise of a stochastic sampler: DDPM, for
flows Euler steps that draw the noise anew.
Every ``BLOCK`` steps, and at the end, the candidate whose predicted clean image has the highest reward is kept and copied
over the others. That prediction is the one that the next step needs anyway, so a selection costs no evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from aig import families
from aig.budget import UNLIMITED, Budget
from aig.columns import BLOCK
from aig.guidance import annealed
from aig.rewards import Reward
from aig.sampling import Frame, Stopped, clean_latents, decode, finite, initial_latents, previews, watched
from aig.steps import step_of


@torch.no_grad()
def best_of(
    pipe: DiffusionPipeline,
    *,
    prompt: str,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    candidates: int,
    reward: Reward,
    tuned: nn.Module | None = None,
    on_frame: Callable[[Frame], None] | None = None,
    stop: Callable[[], bool] | None = None,
    preview_share: float = 0.05,
    size: int | None = None,
    budget: Budget = UNLIMITED,
) -> Frame:
    """One column of CoDe images, one image a seed; the arguments that ``sampling.sample`` has too mean the same.

    reward: of images (B, 3, H, W) and B prompts. tuned: only says how to reach the base model, as in ``annealed``; it is
    never evaluated. Previews show the first candidate. Raises as ``sample`` does and leaves the pipeline as it was.
    """
    start, stock = time.perf_counter(), pipe.scheduler
    owner = [k for k in range(len(seeds)) for _ in range(candidates)]
    generators = [generator(seeds[k], i % candidates) for i, k in enumerate(owner)]

    def best(latents: Tensor) -> Tensor:
        """For each image the row of its best candidate, (N,), by clean latents."""
        images = decode(pipe, latents, range(len(latents)), budget.images)
        scores = reward(images, [prompt] * len(owner)).view(len(seeds), candidates)
        return scores.argmax(dim=1).cpu() + candidates * torch.arange(len(seeds))

    def frame(step: int, latents: Tensor, final: bool) -> Frame:
        images = decode(pipe, latents, range(len(latents)), budget.images)[None]
        seconds = time.perf_counter() - start
        return Frame(step=step, steps=steps, images=images, rows=ledger.total, seconds=seconds, final=final)

    def show(step: int, latents: Tensor) -> None:
        on_frame(frame(step, latents[::candidates], False))

    def see(output: Tensor, timestep: Tensor, latents: Tensor) -> None:
        step = step_of(pipe.scheduler, timestep)
        if step and step % BLOCK == 0:
            kept = best(clean_latents(pipe.scheduler, output, timestep, latents)).repeat_interleave(candidates)
            for tensor in (output, latents):  # in place: the sampler goes on from here
                tensor.copy_(tensor[kept])
        look(output, timestep, latents)

    if stop is not None and stop():
        raise Stopped
    pipe.scheduler = families.stochastic(stock)
    look = previews(pipe, steps, on_frame and show, stop, preview_share)
    try:
        with annealed(pipe, [0.0] * steps, tuned, rows_at_once=budget.rows) as ledger, watched(pipe, see, generators):
            latents = pipe(
                prompt=prompt,
                num_images_per_prompt=len(owner),
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=families.laid_out(pipe, initial_latents(pipe, seeds, size)[owner]),
                generator=generators,
                output_type="latent",
                **families.call_options(pipe, size),
            ).images
    finally:
        pipe.scheduler = stock
    finite(latents)
    return frame(steps, latents[best(latents)], True)


def generator(seed: int, candidate: int) -> torch.Generator:
    """The noise of one candidate of one image; torch uses 32 bits of a seed, so the two numbers are hashed into them."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, candidate)).generate_state(1)[0]))
