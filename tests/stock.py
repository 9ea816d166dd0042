"""Tiny stock pipelines of many classes of diffusers: a denoiser, a scheduler, and prompts that are random embeddings.

``STOCK`` names them; each is a function that gives the pipeline and, for B images, the arguments of its call. Those that read
prompts are in ``tests.families``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import diffusers as d
import torch
from torch import Tensor, nn

from tests import families, tiny

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True, kw_only=True)
class Stock:
    """A pipeline and its call."""

    pipe: d.DiffusionPipeline
    call: Callable[[int], dict[str, object]]  # for B images
    calls: int | tuple[int, ...] = 1  # of the denoiser at a step, or at each
    steps: int = 3
    begins: int = 0  # at this step
    output: str = "latent"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alike(images: int, *shape: int, seed: int = 0) -> Tensor:
    """The same random values for every image, (B, *shape)."""
    return normal(1, *shape, seed=seed).expand(images, *shape).clone()


def prompts(
    *shape: int, negative: bool = True, mask: bool = False, masks: str = "{}prompt_attention_mask", kind: torch.dtype = torch.long
) -> Callable[[int], dict]:
    """Embeddings (B, L, D) with and without prompt, and their masks."""

    def call(images: int) -> dict[str, object]:
        given = {"prompt_embeds": alike(images, *shape)}
        if negative:
            given["negative_prompt_embeds"] = alike(images, *shape, seed=1)
        if mask:
            ones = torch.ones(images, shape[0], dtype=kind)
            given |= {masks.format(sign): ones for sign in ("", "negative_")[: 1 + negative]}
        return given

    return call


def flow(**options: object) -> d.FlowMatchEulerDiscreteScheduler:
    return d.FlowMatchEulerDiscreteScheduler(**options)


SMALL = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
SIZE = {"height": 16, "width": 16}


def vae() -> nn.Module:
    return families._vae(4)


def chroma() -> Stock:
    model = d.ChromaTransformer2DModel(
        in_channels=16, num_single_layers=1, joint_attention_dim=16, axes_dims_rope=(2, 2, 4), approximator_num_channels=8,
        approximator_hidden_dim=16, approximator_layers=1, **SMALL,
    )  # fmt: skip
    pipe = d.ChromaPipeline(flow(), vae(), None, None, model)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 16, mask=True, kind=torch.bool)(b) | SIZE, calls=2)


def hunyuan_dit() -> Stock:
    model = d.HunyuanDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=16, cross_attention_dim=8, cross_attention_dim_t5=8,
        pooled_projection_dim=4, text_len=4, text_len_t5=4, **SMALL | {"num_layers": 2},
    )  # fmt: skip
    pipe = d.HunyuanDiTPipeline(vae(), None, None, model, d.DDPMScheduler(**BETAS), None, None, False)

    def call(b: int) -> dict[str, object]:
        one = prompts(4, 8, mask=True)(b)
        two = {key.replace("embeds", "embeds_2").replace("mask", "mask_2"): value for key, value in one.items()}
        return one | two | SIZE | {"use_resolution_binning": False}

    return Stock(pipe=pipe, call=call)


def cogview3() -> Stock:
    model = d.CogView3PlusTransformer2DModel(
        in_channels=4, out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8, **SMALL
    )
    pipe = d.CogView3PlusPipeline(None, None, vae(), model, d.CogVideoXDDIMScheduler())
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | SIZE)


def cogview4() -> Stock:
    model = d.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=4, sample_size=8, rope_axes_dim=(4, 4), **SMALL
    )
    pipe = d.CogView4Pipeline(None, None, vae(), model, flow(use_dynamic_shifting=True, time_shift_type="linear"))
    return Stock(pipe=pipe, call=lambda b: prompts(16, 8)(b) | SIZE, calls=2)


def lumina() -> Stock:
    model = d.LuminaNextDiT2DModel(
        sample_size=8, hidden_size=8, num_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=2, cross_attention_dim=8
    )
    pipe = d.LuminaPipeline(model, flow(), vae(), None, None)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8, mask=True)(b) | SIZE)


def lumina2() -> Stock:
    model = d.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=16, num_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1,
        multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(16, 16, 16), cap_feat_dim=8,
    )  # fmt: skip
    pipe = d.Lumina2Pipeline(model, flow(), vae(), None, None)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8, mask=True)(b) | SIZE, calls=2)


def aura_flow() -> Stock:
    model = d.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=16, pos_embed_max_size=16,
    )  # fmt: skip
    pipe = d.AuraFlowPipeline(None, None, vae(), model, flow(shift=1.7))
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8, mask=True)(b) | SIZE)


def sana_sprint() -> Stock:
    sana = families.build("sana")
    config = {name: value for name, value in sana.transformer.config.items() if not name.startswith("_")}
    model = d.SanaTransformer2DModel(**config | {"guidance_embeds": True, "timestep_scale": 1.0})
    pipe = d.SanaSprintPipeline(None, None, sana.vae, model, d.SCMScheduler())
    options = {"height": 32, "width": 32, "use_resolution_binning": False, "max_timesteps": 1.57}
    return Stock(pipe=pipe, call=lambda b: prompts(4, 16, negative=False, mask=True)(b) | options | {"intermediate_timesteps": None})


def z_image() -> Stock:
    model = d.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8, axes_dims=[4, 2, 2],
        axes_lens=[64, 16, 16],
    )  # fmt: skip
    pipe = d.ZImagePipeline(flow(), vae(), None, None, model)

    def call(b: int) -> dict[str, object]:
        return {"prompt_embeds": [normal(4, 8)] * b, "negative_prompt_embeds": [normal(3, 8, seed=1)] * b, **SIZE}

    return Stock(pipe=pipe, call=call)


def hidream() -> Stock:
    model = d.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_single_layers=1, caption_channels=[8, 8], text_emb_dim=8, num_routed_experts=2,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(8, 8), llama_layers=(0, 1), force_inference_output=True, **SMALL,
    )  # fmt: skip
    pipe = d.HiDreamImagePipeline(flow(), vae(), None, None, None, None, None, None, None, None, model)
    pipe.default_sample_size = 2  # which fixes the area of the picture

    def call(b: int) -> dict[str, object]:
        given = {}
        for seed, sign in enumerate(("", "negative_")):
            given |= {f"{sign}prompt_embeds_t5": alike(b, 4, 8, seed=seed), f"{sign}pooled_prompt_embeds": alike(b, 8, seed=seed)}
            given[f"{sign}prompt_embeds_llama3"] = normal(2, 1, 4, 8, seed=seed).expand(2, b, 4, 8).clone()
        return given | SIZE

    return Stock(pipe=pipe, call=call)


def qwen() -> Stock:
    model = d.QwenImageTransformer2DModel(in_channels=16, out_channels=4, joint_attention_dim=8, axes_dims_rope=(4, 2, 2), **SMALL)
    pipe = d.QwenImagePipeline(flow(), None, None, None, model)
    masked = prompts(4, 8, mask=True, masks="{}prompt_embeds_mask")
    return Stock(pipe=pipe, call=lambda b: masked(b) | SIZE | {"true_cfg_scale": 3.0}, calls=2)


def wan_model() -> nn.Module:
    return d.WanTransformer3DModel(
        in_channels=4, out_channels=4, text_dim=8, freq_dim=8, ffn_dim=16, rope_max_seq_len=32, **SMALL | {"attention_head_dim": 12}
    )


VIDEO = {"height": 16, "width": 16, "num_frames": 5}


def wan() -> Stock:
    pipe = d.WanPipeline(None, None, None, d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), wan_model())
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | VIDEO, calls=2)


def ltx() -> Stock:
    model = d.LTXVideoTransformer3DModel(in_channels=4, out_channels=4, cross_attention_dim=16, caption_channels=8, **SMALL)
    pipe = d.LTXPipeline(flow(), None, None, None, model)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8, mask=True)(b) | {"height": 64, "width": 64, "num_frames": 9})


def cogvideox() -> Stock:
    model = d.CogVideoXTransformer3DModel(
        in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8, sample_width=2, sample_height=2, sample_frames=9, max_text_seq_length=4,
        **SMALL | {"num_layers": 2},
    )  # fmt: skip
    pipe = d.CogVideoXPipeline(None, None, None, model, d.CogVideoXDDIMScheduler())
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | {"height": 16, "width": 16, "num_frames": 8})


def hunyuan_video() -> Stock:
    model = d.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_single_layers=1, num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8,
        rope_axes_dim=(2, 2, 4), **SMALL,
    )  # fmt: skip
    pipe = d.HunyuanVideoPipeline(None, None, model, None, flow(), None, None)

    def call(b: int) -> dict[str, object]:
        return prompts(4, 8, negative=False, mask=True)(b) | {"pooled_prompt_embeds": alike(b, 8)} | VIDEO

    return Stock(pipe=pipe, call=call)


def mochi() -> Stock:
    model = d.MochiTransformer3DModel(
        in_channels=4, pooled_projection_dim=8, text_embed_dim=8, time_embed_dim=4, max_sequence_length=4, **SMALL | {"num_layers": 2}
    )
    pipe = d.MochiPipeline(flow(), None, None, None, model)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8, mask=True)(b) | {"height": 16, "width": 16, "num_frames": 7})


def latte() -> Stock:
    model = d.LatteTransformer3DModel(
        in_channels=4, out_channels=8, sample_size=8, patch_size=2, cross_attention_dim=16, norm_type="ada_norm_single",
        norm_elementwise_affine=False, caption_channels=8, video_length=2, attention_bias=True, num_embeds_ada_norm=1000, **SMALL,
    )  # fmt: skip
    pipe = d.LattePipeline(None, None, vae(), model, d.DDIMScheduler(clip_sample=False, **BETAS))
    return Stock(
        pipe=pipe,
        call=lambda b: (
            prompts(4, 8)(b) | SIZE | {"negative_prompt": None, "video_length": 2, "clean_caption": False, "mask_feature": False}
        ),
    )


def movq() -> nn.Module:
    return d.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        norm_num_groups=4, num_vq_embeddings=8,
    )  # fmt: skip


def kandinsky3() -> Stock:
    model = d.Kandinsky3UNet(
        time_embedding_dim=8, groups=2, attention_head_dim=4, layers_per_block=3, block_out_channels=(8, 8, 16, 16), cross_attention_dim=8,
        encoder_hid_dim=8,
    )  # fmt: skip
    pipe = d.Kandinsky3Pipeline(None, None, model, d.DDPMScheduler(**BETAS), movq())
    masked = prompts(4, 8, mask=True, masks="{}attention_mask")
    return Stock(pipe=pipe, call=lambda b: masked(b) | {"height": 64, "width": 64})


def kandinsky22() -> Stock:
    conditions = {"encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
    model = tiny.unet(out_channels=8, cross_attention_dim=8, **conditions)
    pipe = d.KandinskyV22Pipeline(model, d.DDIMScheduler(clip_sample=False, **BETAS), movq())
    return Stock(pipe=pipe, call=lambda b: {"image_embeds": alike(b, 8), "negative_image_embeds": alike(b, 8, seed=1), **SIZE})


def deepfloyd() -> Stock:
    model = tiny.unet(in_channels=3, out_channels=6, cross_attention_dim=8, encoder_hid_dim=8, encoder_hid_dim_type="text_proj")
    scheduler = d.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    pipe = d.IFPipeline(None, None, model, scheduler, None, None, None, False)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | SIZE | {"clean_caption": False}, output="pt")


def sd(kind: str, unet: dict | None = None, **parts: object) -> Callable[[Callable[[int], dict]], Stock]:
    """A relative of Stable Diffusion with no text encoder."""
    model = tiny.unet(cross_attention_dim=8, **unet or {})
    pipe = getattr(d, kind)(
        vae=vae(), text_encoder=None, tokenizer=None, unet=model, scheduler=d.DDIMScheduler(clip_sample=False, **BETAS), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, **parts,
    )  # fmt: skip
    return lambda call: Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | call(b))


def pictures(b: int) -> Tensor:
    return alike(b, 3, 16, 16).sigmoid()


def pix2pix() -> Stock:
    return sd("StableDiffusionInstructPix2PixPipeline", {"in_channels": 8})(lambda b: {"image": pictures(b), "image_guidance_scale": 2.0})


def stable_diffusion() -> Stock:
    return sd("StableDiffusionPipeline")(lambda b: SIZE)


def img2img() -> Stock:
    return replace(sd("StableDiffusionImg2ImgPipeline")(lambda b: {"image": pictures(b), "strength": 0.67}), steps=6, begins=2)


def inpaint() -> Stock:
    return sd("StableDiffusionInpaintPipeline")(
        lambda b: {"image": pictures(b), "mask_image": (pictures(b)[:, :1] > 0.5).float(), "strength": 1.0, **SIZE}
    )


def pag() -> Stock:
    return sd("StableDiffusionPAGPipeline", pag_applied_layers="mid")(lambda b: {"pag_scale": 2.0, **SIZE})


def controlnet() -> Stock:
    net = d.ControlNetModel.from_unet(tiny.unet(cross_attention_dim=8), conditioning_embedding_out_channels=(4, 8))
    return sd("StableDiffusionControlNetPipeline", controlnet=net)(lambda b: {"image": pictures(b)})


def t2i_adapter() -> Stock:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    adapter = d.T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    return sd("StableDiffusionAdapterPipeline", blocks, adapter=adapter)(lambda b: {"image": pictures(b), **SIZE})


def animatediff() -> Stock:
    base = tiny.unet(cross_attention_dim=8)
    motion = d.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    scheduler = d.DDIMScheduler(clip_sample=False, **BETAS)
    pipe = d.AnimateDiffPipeline(vae(), None, None, base, motion, scheduler)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | SIZE | {"num_frames": 3})


def sd3_skips_layers() -> Stock:
    options = {
        "guidance_scale": 3.0,
        "skip_guidance_layers": [0],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
        **SIZE,
    }
    return Stock(pipe=families.build("sd3"), call=lambda b: {"prompt": ["a cat"] * b} | options, calls=(1, 2, 2))


def flux() -> Stock:
    options = {"true_cfg_scale": 3.0, **SIZE}
    return Stock(pipe=families.build("flux"), call=lambda b: {"prompt": ["a cat"] * b, "negative_prompt": ["b"] * b} | options, calls=2)


def kontext() -> Stock:
    pipe = d.FluxKontextPipeline(**{name: part for name, part in families.build("flux").components.items()})
    options = {"max_area": 256, "_auto_resize": False, **SIZE}
    return Stock(pipe=pipe, call=lambda b: {"prompt": ["a cat"] * b, "image": pictures(b)} | options)


def sdxl_img2img() -> Stock:
    pipe = d.StableDiffusionXLImg2ImgPipeline(**families.build("sdxl").components)
    return Stock(pipe=pipe, call=lambda b: {"prompt": ["a cat"] * b, "image": pictures(b), "strength": 0.5}, steps=6, begins=3)


def family(name: str, **options: object) -> Stock:
    size = {"height": families.size(name), "width": families.size(name)}
    return Stock(pipe=families.build(name), call=lambda b: {"prompt": ["a cat"] * b} | size | options)


def sdxl() -> Stock:
    return family("sdxl")


def sd3() -> Stock:
    return family("sd3")


def pixart() -> Stock:
    return family("pixart", use_resolution_binning=False)


def sana() -> Stock:
    return family("sana", use_resolution_binning=False, complex_human_instruction=None)


def relative(kind: str, name: str, **parts: object) -> d.DiffusionPipeline:
    """Another class of pipeline with a family's components."""
    known = inspect.signature(getattr(d, kind)).parameters
    return getattr(d, kind)(**{name: part for name, part in families.build(name).components.items() if name in known}, **parts)


def sdxl_pag() -> Stock:
    return replace(family("sdxl", pag_scale=2.0), pipe=relative("StableDiffusionXLPAGPipeline", "sdxl", pag_applied_layers="mid"))


def sd3_pag() -> Stock:
    return replace(family("sd3", pag_scale=2.0), pipe=relative("StableDiffusion3PAGPipeline", "sd3", pag_applied_layers="blocks.0"))


def sana_pag() -> Stock:
    options = {"use_resolution_binning": False, "complex_human_instruction": None}
    pipe = relative("SanaPAGPipeline", "sana", pag_applied_layers="transformer_blocks.0")
    return replace(family("sana", pag_scale=2.0, **options), pipe=pipe)


def flux_img2img() -> Stock:
    pipe = relative("FluxImg2ImgPipeline", "flux")
    return Stock(pipe=pipe, call=lambda b: {"prompt": ["a cat"] * b, "image": pictures(b), "strength": 0.5} | SIZE, steps=6, begins=3)


def sdxl_adapter() -> Stock:
    adapter = d.T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
    pipe = relative("StableDiffusionXLAdapterPipeline", "sdxl", adapter=adapter)
    return Stock(pipe=pipe, call=lambda b: {"prompt": ["a cat"] * b, "image": pictures(b)} | SIZE)


def bria() -> Stock:
    model = d.BriaTransformer2DModel(in_channels=16, num_single_layers=1, joint_attention_dim=8, axes_dims_rope=[0, 4, 4], **SMALL)
    pipe = d.BriaPipeline(model, flow(), vae(), None, None)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | SIZE)


def ovis() -> Stock:
    model = d.OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, num_single_layers=1, joint_attention_dim=8, axes_dims_rope=(2, 2, 4), **SMALL
    )
    pipe = d.OvisImagePipeline(flow(), vae(), None, None, model)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | SIZE | {"negative_prompt": None}, calls=2)


def sana_video() -> Stock:
    model = d.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_cross_attention_heads=2,
        cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8, sample_size=8, rope_max_seq_len=32,
    )  # fmt: skip
    pipe = d.SanaVideoPipeline(None, None, None, model, flow())
    masked = prompts(4, 8, mask=True)
    return Stock(
        pipe=pipe,
        call=lambda b: masked(b) | {"negative_prompt": None, "height": 64, "width": 64, "frames": 9, "use_resolution_binning": False},
    )


STOCK = {
    maker.__name__: maker
    for maker in (
        stable_diffusion, img2img, inpaint, pix2pix, controlnet, t2i_adapter, pag, animatediff, deepfloyd, kandinsky22,
        kandinsky3, chroma, hunyuan_dit, cogview3, cogview4, lumina, lumina2, aura_flow, sana_sprint, z_image, hidream, qwen,
        wan, ltx, cogvideox, hunyuan_video, mochi, latte, sd3_skips_layers, flux, kontext, sdxl_img2img, sdxl, sd3, pixart, sana,
        sdxl_pag, sd3_pag, sana_pag, flux_img2img, sdxl_adapter, bria, ovis, sana_video,
    )
}  # fmt: skip
