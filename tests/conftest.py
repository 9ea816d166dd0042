"""A stock Stable Diffusion pipeline of real classes at tiny size, randomly initialised, with a LoRA that matters."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

from tests import tiny

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(scope="session")
def make_pipe() -> Callable[[], StableDiffusionPipeline]:
    """Builds fresh pipelines with equal weights: 8x8 latents of 4 channels, 16x16 images, v-prediction."""

    def build() -> StableDiffusionPipeline:
        torch.manual_seed(0)
        unet = tiny.unet(cross_attention_dim=16)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
        config = CLIPTextConfig(
            **tiny.IDS,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = StableDiffusionPipeline(
                vae=vae.eval(),
                text_encoder=CLIPTextModel(config).eval(),
                tokenizer=tiny.clip_tokenizer(8),
                unet=unet.eval(),
                scheduler=DDIMScheduler(
                    beta_schedule="squaredcos_cap_v2",
                    prediction_type="v_prediction",
                    timestep_spacing="trailing",
                    clip_sample=False,  # these two as Stable Diffusion has them
                    steps_offset=1,
                ),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture(scope="session")
def lora_file(make_pipe: Callable[[], StableDiffusionPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA of attention and convolution layers, strong enough to change every image, as diffusers saves it."""
    unet = make_pipe().unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "to_out.0", "conv1", "conv_in"]))
    torch.manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture
def pipe(make_pipe: Callable[[], StableDiffusionPipeline]) -> StableDiffusionPipeline:
    """The base pipeline, fresh."""
    return make_pipe()


@pytest.fixture
def lora_pipe(make_pipe: Callable[[], StableDiffusionPipeline], lora_file: Path) -> StableDiffusionPipeline:
    """A fresh pipeline with the LoRA loaded the stock way."""
    pipe = make_pipe()
    pipe.load_lora_weights(str(lora_file))
    return pipe
