"""Stage ``denoiser``: text encoder and UNet, trained together on the latents of the drawings; v-prediction, cosine schedule.

Writes ``work/pipeline``, a stock StableDiffusionPipeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from aig.world import autoencoder, data
from aig.world.captions import MAX_TOKENS, tokenizer, training_caption
from aig.world.portraits import decode
from aig.world.presets import Preset
from aig.world.training import device, fit

SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


class Conditional(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, preset: Preset) -> None:
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
        )


def train(preset: Preset) -> Iterator[dict[str, float]]:
    """Train, resume and finally save the pipeline."""
    vae = AutoencoderTiny.from_pretrained(preset.work / "vae").to(device(), memory_format=torch.channels_last)
    images, labels = data.load(preset)
    latents = autoencoder.encode_all(vae, images[: preset.drawings])
    people = [decode(row) for row in labels[: preset.drawings]]
    words, noise = tokenizer(), DDIMScheduler(**SCHEDULE)
    torch.manual_seed(preset.seed)
    model = Conditional(preset).to(device())
    model.unet.to(memory_format=torch.channels_last)
    batch = preset.denoiser_batch

    def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(len(people), (batch,), generator=rng)
        texts = [training_caption(people[i], rng) for i in index.tolist()]
        ids = words(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
        x = latents[index].float()
        # stratified over the batch: lower variance than independent timesteps
        t = ((torch.arange(batch) + torch.rand(batch, generator=rng)) / batch * noise.config.num_train_timesteps).long()
        e = torch.randn(x.shape, generator=rng)
        noisy, target = noise.add_noise(x, e, t), noise.get_velocity(x, e, t)
        noisy, target, t, ids = (item.to(device()) for item in (noisy, target, t, ids))
        v = model.unet(noisy.contiguous(memory_format=torch.channels_last), t, model.text_encoder(ids)[0], return_dict=False)[0]
        return {"loss": F.mse_loss(v, target)}

    yield from fit(model, loss, steps=preset.denoiser_steps, lr=6e-4, folder=preset.work / "denoiser", seed=preset.seed)
    pipeline(model, vae).save_pretrained(preset.work / "pipeline")


def pipeline(model: Conditional, vae: AutoencoderTiny) -> StableDiffusionPipeline:
    """The stock pipeline around the trained parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StableDiffusionPipeline(
            vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer(), unet=model.unet,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULE), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
