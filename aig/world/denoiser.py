"""Stage ``denoiser``: text encoder and UNet on the latents of the drawings; v-prediction, cosine schedule.

The text reaches the UNet twice, both ways stock: by cross-attention, and pooled into the time embedding (as in DeepFloyd IF),
which every residual block sees. Before the UNet trains, the text encoder and the pooling learn to tell what a caption names:
minutes, where learning it through the denoising loss alone takes hours. That loss stays on beside the denoising loss, with
fixed heads; without it the words of small things (glasses) were forgotten before the UNet could draw them. Late in training
samples correct how often each drawing is seen (``tilt``), which needs the trained ruler. Writes ``work/pipeline``, a
StableDiffusionPipeline.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from math import log

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from aig.portraits.captions import MAX_TOKENS, named_attributes, tokenizer, training_caption
from aig.portraits.population import ATTRIBUTES, NONE, decode
from aig.training import compiled, device, fit
from aig.world import autoencoder, data, tilt
from aig.world.presets import World

NOISE = (0.1, 200.0)  # bounds of the timesteps' noise levels, in standard deviations per signal: sigma / alpha
APART = 1.05  # the largest ratio of a noise level to the one before
READING = 0.1  # weight of the reading loss beside the denoising loss
# A few pixels each, and their rarer values are rare; moods twice, as they are the hardest.
SMALL = ("glasses", "beard", "hat", "mood", "mood", "hair length")
SUBTLE = 3.0  # ratio of the loss's weight where the drawings' moods differ most to that where they do not
CORRECTION_SEED = 1_000_000  # first of the samples that correct the drawings' weights; the evaluation never draws these
P_SMALL = 0.5  # of a drawing chosen for the value of one of these, which its caption then names


def schedule() -> dict[str, object]:
    """Settings of a diffusers scheduler: v-prediction on the part of the cosine schedule (arXiv 2102.09672) within ``NOISE``.

    A dozen sampling steps must all count. Noise below 0.1 changes no picture. At 200 nothing is left of one; at 50 (EDM starts at
    80, arXiv 2206.00364) a background, the same at every place, still shows, and samples, which start as noise alone, were too seldom
    white. Between them the solver takes Karras noise levels: in equal timesteps the first step would leap over the levels that decide
    large areas, and most samples would get the same few backgrounds. The cosine schedule's last timesteps lie further apart than the
    first of a hundred such levels, of which stock solvers cannot tell two in one timestep; there the levels rise by ``APART`` instead.
    """
    alphas = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    levels = [level for level in (1 / alphas - 1).sqrt().tolist() if level >= NOISE[0]]
    near = 1 + next(i for i, (low, high) in enumerate(pairwise(levels)) if high > APART * low)
    tail = [levels[near - 1] * APART**k for k in range(1, 1 + int(log(NOISE[1] / levels[near - 1], APART)))]
    kept = 1 / (1 + torch.tensor(levels[:near] + tail).double() ** 2)
    betas = 1 - kept / torch.cat([torch.ones(1), kept[:-1]])
    return {
        "num_train_timesteps": len(betas), "trained_betas": [round(beta, 9) for beta in betas.tolist()],
        "prediction_type": "v_prediction", "timestep_spacing": "trailing", "steps_offset": 1,  # as Stable Diffusion has it
    }  # fmt: skip


class Conditional(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, preset: World) -> None:
        super().__init__()
        words = tokenizer()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=preset.text_width,
                intermediate_size=preset.text_width * 4,
                num_hidden_layers=preset.text_layers,
                num_attention_heads=preset.text_width // 48,
                max_position_embeddings=MAX_TOKENS,
                projection_dim=preset.text_width,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        levels = len(preset.unet_channels)
        self.unet = UNet2DConditionModel(
            sample_size=preset.latent_size,
            in_channels=preset.latent_channels,
            out_channels=preset.latent_channels,
            block_out_channels=preset.unet_channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)),
            up_block_types=(*["CrossAttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
            cross_attention_dim=preset.text_width,
            attention_head_dim=4,  # the number of heads, by the historical name of this argument
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            resnet_time_scale_shift="scale_shift",
        )


class Reader(nn.Module):
    """What a caption names, told from the pooled text embedding: for each attribute a value, or that it stays open."""

    def __init__(self, model: Conditional) -> None:
        super().__init__()
        self.text_encoder, self.pool = model.text_encoder, model.unet.add_embedding
        width = self.pool.proj.out_features
        self.heads = nn.ModuleList(nn.Linear(width, len(values) + 1) for values in ATTRIBUTES.values())

    def forward(self, encoded: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """Mean cross-entropy over the attributes; ``encoded`` (B, MAX_TOKENS, text_width) are the B texts."""
        pooled = self.pool(encoded)
        named = [named_attributes(text) for text in texts]
        losses = []
        for head, (name, values) in zip(self.heads, ATTRIBUTES.items(), strict=True):
            target = [1 + values.index(n[name]) if name in n else 0 for n in named]
            losses.append(F.cross_entropy(head(pooled), torch.tensor(target, device=pooled.device)))
        return torch.stack(losses).mean()


def train(preset: World) -> Iterator[dict[str, float]]:
    """Train, resume and finally save the pipeline. Raises ValueError when there is no ruler yet and samples are to be told."""
    if preset.tilted_cycles and not (preset.work / "ruler.safetensors").exists():
        raise ValueError(f"The denoiser's training needs the ruler; run the stage ruler of the preset {preset.name} first.")
    vae = AutoencoderTiny.from_pretrained(preset.work / "vae").to(device(), memory_format=torch.channels_last)
    images, labels = data.load(preset)
    latents = autoencoder.encode_all(vae, images[: preset.drawings])
    people = [decode(row) for row in labels[: preset.drawings]]
    words, noise = tokenizer(), DDIMScheduler(**schedule())
    torch.manual_seed(preset.seed)
    model = Conditional(preset).to(device())
    reader = Reader(model).to(device())
    batch = preset.denoiser_batch

    weight = emphasis(latents, labels[: preset.drawings]).to(device())
    shown = balanced(labels[: preset.drawings], torch.ones(preset.drawings))

    def captions(rng: torch.Generator) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        chosen = [choose(shown, rng) for _ in range(batch)]
        texts = [training_caption(people[i], rng, always) for i, always in chosen]
        index = torch.tensor([i for i, _ in chosen])
        ids = words(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
        return index, texts, ids.to(device())

    def reading_loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        _, texts, ids = captions(rng)
        return {"loss": reader(model.text_encoder(ids)[0], texts)}

    yield from fit(reader, reading_loss, cycles=((preset.text_steps, 1e-3),), folder=preset.work / "words", seed=preset.seed)
    reader.heads.requires_grad_(False)
    unet = compiled(model.unet.to(memory_format=torch.channels_last), preset.denoiser_cycles[-1][0])

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        index, texts, ids = captions(rng)
        x = latents[index].float()
        t = timesteps(noise, batch, rng)
        e = torch.randn(x.shape, generator=rng)
        noisy, target = noise.add_noise(x, e, t), noise.get_velocity(x, e, t)
        noisy, target, t = (item.to(device()) for item in (noisy, target, t))
        text = model.text_encoder(ids)[0]
        v = unet(noisy.contiguous(memory_format=torch.channels_last), t, text, return_dict=False)[0]
        error, reading = (v - target).square(), reader(text, texts)
        return {"loss": (error * weight).mean() + READING * reading, "mse": error.mean(), "reading": reading}

    fitted = partial(fit, model, loss, folder=preset.work / "denoiser", seed=preset.seed, ema=0.999)
    cycles, weights = preset.denoiser_cycles, torch.ones(preset.drawings)
    for count in range(len(cycles) - preset.tilted_cycles, len(cycles) + 1):
        yield from fitted(cycles=cycles[:count])
        if count < len(cycles):
            weights = tilted(weights, preset, labels, pipeline(model, vae), cycles[count - 1][0])
            shown = balanced(labels[: preset.drawings], weights)
    pipeline(model, vae).save_pretrained(preset.work / "pipeline")


def tilted(weights: torch.Tensor, preset: World, labels: np.ndarray, pipe: StableDiffusionPipeline, updates: int) -> torch.Tensor:
    """The drawings' weights (N,) after so many updates; a run that resumes finds those that it had."""
    path = preset.work / "denoiser" / f"weights-{updates}.safetensors"
    if not path.exists():
        drawn = torch.as_tensor(labels[: preset.drawings])
        first = CORRECTION_SEED + updates * 10  # others each time: errors of one set of samples would add up
        found = tilt.corrected(weights, drawn, pipe, seeds=range(first, first + preset.tilt_samples), ruler=preset.work)
        save_file({"weights": found}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    return load_file(path)["weights"]


def timesteps(noise: DDIMScheduler, batch: int, rng: torch.Generator) -> torch.Tensor:
    """Timesteps (B,) to train at: every other one uniform, the others at uniform quantiles of the Karras noise levels that sampling
    takes. Each kind is stratified over the batch: lower variance than independent ones."""
    quantiles = (torch.arange(batch) // 2 + torch.rand(batch, generator=rng)) / ((batch + 1) // 2)
    low, high = (level ** (1 / 7) for level in NOISE)  # rho = 7, arXiv 2206.00364, equation 5
    levels = (1 / noise.alphas_cumprod - 1).sqrt()
    visited = torch.searchsorted(levels, (low + quantiles * (high - low)) ** 7)
    uniform = quantiles * len(levels)
    return torch.where(torch.arange(batch) % 2 > 0, visited, uniform).long().clamp(max=len(levels) - 1)


def emphasis(latents: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    """Weights (h, w) with mean 1 of the loss at each place: up to ``SUBTLE`` times as much where moods of one style differ.

    A mouth is a thousandth of the picture. The best prediction at every place stays what it is; a small network spends itself otherwise.
    """
    style, mood = (torch.as_tensor(labels[:, list(ATTRIBUTES).index(name)]) for name in ("style", "mood"))
    apart = torch.zeros(latents.shape[2:])
    for i in style.unique():
        moods = [latents[(style == i) & (mood == j)].float().mean(0) for j in mood[style == i].unique()]
        apart += torch.stack(moods).var(0, correction=0).sum(0)
    weight = 1 + (SUBTLE - 1) * apart / apart.max()
    return weight / weight.mean()


class Drawings:
    """Drawings, by index (N,), of which one is picked with probability proportional to its weight (N,)."""

    def __init__(self, index: torch.Tensor, weights: torch.Tensor) -> None:
        self.index, self.up_to = index, weights.double().cumsum(0)

    def pick(self, rng: torch.Generator) -> int:
        place = torch.rand((), generator=rng).double() * self.up_to[-1]
        return int(self.index[torch.searchsorted(self.up_to, place, right=True).clamp(max=len(self.index) - 1)])


def balanced(labels: np.ndarray, weights: torch.Tensor) -> dict[str, list[Drawings]]:
    """For each of the ``SMALL`` attributes the drawings that show each of its values; "": all. labels (N, attributes), weights (N,)."""
    found = {"": [Drawings(torch.arange(len(labels)), weights)]}
    for name in set(SMALL):
        column = torch.as_tensor(labels[:, list(ATTRIBUTES).index(name)])
        rows = [(column == i).nonzero().squeeze(1) for i, value in enumerate(ATTRIBUTES[name]) if value != NONE]
        found[name] = [Drawings(index, weights[index]) for index in rows if len(index)]
    return found


def choose(shown: dict[str, list[Drawings]], rng: torch.Generator) -> tuple[int, str]:
    """A drawing, and the attribute that its caption has to name ("" for none).

    Half of the time one of ``SMALL``, one of its values, each uniformly, and a drawing that shows it. As the caption then names
    that value, what it leaves open is distributed as before: only the captions' shares change, p(image | caption) does not.
    """
    pick = lambda n: int(torch.randint(n, (1,), generator=rng))  # noqa: E731
    name = SMALL[pick(len(SMALL))] if float(torch.rand((), generator=rng)) < P_SMALL else ""
    return shown[name][pick(len(shown[name]))].pick(rng), name


def pipeline(model: Conditional, vae: AutoencoderTiny) -> StableDiffusionPipeline:
    """The stock pipeline around the trained parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StableDiffusionPipeline(
            vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer(), unet=model.unet,
            scheduler=DPMSolverMultistepScheduler(**schedule(), use_karras_sigmas=True), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
