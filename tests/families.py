"""Stock pipelines of every model family: real classes at tiny size, random weights, tokenizers made offline.

``build(family)`` gives equal weights at every call. Images are 16 x 16 (sana 32 x 32), as ``size`` says; the true FLUX
has a size of its own in its pipeline object alone, so a saved one comes back with another default. A pipeline can be
saved with ``save_pretrained`` and loaded with ``from_pretrained``.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from aig.published.presets import Tuned
from tests import tiny
from tests.tiny import LETTERS

FAMILIES = ("sd", "sd-v", "sdxl", "sd3", "flux", "flux-schnell", "pixart", "sana")
LENGTH = 16  # of a prompt in CLIP's tokens
DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of Stable Diffusion

LORA = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "to_out.0"])


def build(family: str) -> DiffusionPipeline:
    """A fresh pipeline on the CPU, in float32, without a progress bar. KeyError for an unknown family."""
    makers = {
        "sd": _sd,
        "sd-v": lambda: _sd(prediction_type="v_prediction"),
        "sdxl": _sdxl,
        "sd3": _sd3,
        "flux": lambda: _flux(guidance_embeds=True),
        "flux-schnell": lambda: _flux(guidance_embeds=False),
        "pixart": _pixart,
        "sana": _sana,
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipe = makers[family]()
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        _stir(denoiser(pipe), 0.2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def size(family: str) -> int:
    """Height and width of the images."""
    return 32 if family == "sana" else 16


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """The UNet or transformer."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def tuned(pipe: DiffusionPipeline) -> nn.Module:
    """A second denoiser: a copy with all its weights moved far enough to change every image."""
    twin = copy.deepcopy(denoiser(pipe))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _stir(twin, 0.3)
    return twin


def lora(pipe: DiffusionPipeline, folder: str | Path) -> Path:
    """The file of a random LoRA of the attention layers, strong enough to change every image, saved as diffusers does.

    PixArt's pipeline class cannot save one: its file is in the same format, with ``transformer.`` before every key.
    """
    twin = copy.deepcopy(denoiser(pipe))
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(LORA, twin)
        torch.manual_seed(1)
        for name, parameter in twin.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.5)
    saver = type(pipe) if hasattr(pipe, "save_lora_weights") else StableDiffusion3Pipeline
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    saver.save_lora_weights(Path(folder), **{f"{part}_lora_layers": get_peft_model_state_dict(twin)})
    return Path(folder) / "pytorch_lora_weights.safetensors"


def save(family: str, folder: Path) -> DiffusionPipeline:
    """The family's pipeline, saved in a folder with a LoRA in ``lora`` and a second denoiser in ``second``."""
    pipe = build(family)
    pipe.save_pretrained(folder)
    lora(pipe, folder / "lora")
    tuned(pipe).save_pretrained(folder / "second")
    return pipe


def source(kind: str) -> Tuned:
    """What a preset would say of the tuned weights in a folder of ``save``."""
    place = {"subfolder": "lora", "weight_name": "pytorch_lora_weights.safetensors"} if kind == "lora" else {"subfolder": "second"}
    return Tuned(name="t", reward="r", kind=kind, repo="./model", licence="l", source="s", **place)


def attach(pipe: DiffusionPipeline, file: Path) -> None:
    """Load a LoRA file of ``lora`` the stock way; with peft alone where diffusers has no way (PixArt)."""
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(str(file))
        return
    state = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    inject_adapter_in_model(LORA, pipe.transformer)
    set_peft_model_state_dict(pipe.transformer, state)


@torch.no_grad()
def _stir(module: nn.Module, amount: float) -> None:
    """Add noise to all weights: several families start with layers at zero, which would answer nothing to anything."""
    for parameter in module.parameters():
        spread = parameter.std() if parameter.ndim > 1 else torch.tensor(0.0)
        parameter.add_(torch.randn_like(parameter) * amount * (spread if spread > 0 else 0.1))


def _sd(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=tiny.clip_tokenizer(LENGTH),
        unet=tiny.unet(cross_attention_dim=16),
        scheduler=DDIMScheduler(**DIFFUSION, prediction_type=prediction_type, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    conditions = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 16 + 6 * 4,  # pooled text and six numbers about the size
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
    }
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=tiny.clip_tokenizer(LENGTH),
        tokenizer_2=tiny.clip_tokenizer(LENGTH),
        unet=tiny.unet(cross_attention_dim=32, **conditions),
        scheduler=EulerDiscreteScheduler(**DIFFUSION, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=tiny.clip_tokenizer(LENGTH),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=tiny.clip_tokenizer(LENGTH),
        text_encoder_3=T5EncoderModel(_t5_config(32)),
        tokenizer_3=_t5_tokenizer(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(guidance_embeds: bool) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,  # 2 x 2 patches of 4 channels
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    pipe = FluxPipeline(
        vae=_vae(4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=tiny.clip_tokenizer(LENGTH),
        text_encoder_2=T5EncoderModel(_t5_config(32)),
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**dynamic if guidance_embeds else {"shift": 1.0}),
    )
    pipe.default_sample_size = 8  # latents; the class fixes 128
    return pipe


def _pixart() -> PixArtSigmaPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,  # the second half is the learned variance
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=T5EncoderModel(_t5_config(32)),
        vae=_vae(4),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def _sana() -> SanaPipeline:
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        timestep_scale=0.5,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (5,), (5,)),
        decoder_qkv_multiscales=((), (5,), (5,)),
        scaling_factor=0.41407,
    )
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(_gemma_tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=4096,  # Sana puts a long instruction before every prompt
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )
    return SanaPipeline(
        tokenizer=_gemma_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
    )


def _vae(channels: int, **options: object) -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        **options,
    )


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        **tiny.IDS,
        hidden_size=16,
        projection_dim=16,
        intermediate_size=32,
        num_hidden_layers=2,  # SDXL and SD3 read the last but one
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )


def _t5_config(width: int) -> T5Config:
    return T5Config(
        vocab_size=len(_t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip


@cache
def _t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -2.0) for letter in ("▁", *LETTERS)]
    return T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=512)


@cache
def _gemma_tokenizer() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return GemmaTokenizer(vocab={word: i for i, word in enumerate([*special, "▁", *LETTERS])}, merges=[])
