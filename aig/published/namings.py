"""The names that published LoRA files give to a denoiser's layers, for the denoiser at hand.

Trainers name a layer as diffusers does, or as the model's authors do: Stable Diffusion's UNets with blocks numbered
through, FLUX and SD 3 with query, key and value in one matrix. Many write ``_`` for ``.``, so names are compared without
the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, cat, nn

_IN_FRONT = re.compile(
    r"(?:base_model\.model\.|module\.|unet\.|transformer\.|(?:model\.)?diffusion_model\.|lora_unet_|lora_transformer_|lycoris_)+"
)
_COMPILED = re.compile(r"_orig_mod[._]")

Names = Mapping[str, tuple[str, ...]]  # a file's name for a layer -> the denoiser's layers that it stacks, from the top

FLUX_DOUBLE: Names = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "processor.qkv1": ("attn.to_q", "attn.to_k", "attn.to_v"),  # xlabs: 1 is the image, 2 the text
    "processor.qkv2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "processor.proj1": ("attn.to_out.0",),
    "processor.proj2": ("attn.to_add_out",),
}
FLUX_SINGLE: Names = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "processor.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "processor.proj": ("proj_out",),
}
FLUX_ENDS: Names = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SD3_BLOCK: Names = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
SD3_ENDS: Names = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
UNET_ENDS: Names = {
    "input_blocks.0.0": ("conv_in",),
    "out.2": ("conv_out",),
    "time_embed.0": ("time_embedding.linear_1",),
    "time_embed.2": ("time_embedding.linear_2",),
    "label_emb.0.0": ("add_embedding.linear_1",),
    "label_emb.0.2": ("add_embedding.linear_2",),
}
UNET_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}


def plain(name: str) -> str:
    """A layer's name without what wrappers and trainers put in front, for looking it up."""
    name = _COMPILED.sub("", name)
    inner = name[front.end() :] if (front := _IN_FRONT.match(name)) else name
    return _flat(inner).rstrip("_")  # one trainer's names end in to_q_


class Place(NamedTuple):
    """Where a named layer is in the denoiser."""

    layers: tuple[str, ...]  # stacked from the top
    theirs: bool  # in the order of rows that the model's authors have


def places(denoiser: ModelMixin) -> dict[str, Place]:
    """Every plain name of the denoiser's linear and convolution layers, and where it is."""
    own = [name.removesuffix(".base_layer") for name, part in denoiser.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    known = set(own)
    found = {_flat(name): Place(layers, True) for name, layers in _authors(denoiser, own) if known.issuperset(layers)}
    for layer in own:
        found[_flat(layer)] = Place((layer,), False)
        if ".attn" in layer:  # diffusers' older names
            older = layer.removesuffix(".0") if layer.endswith("to_out.0") else layer
            stem, _, last = older.rpartition(".")
            found[_flat(older)] = found[_flat(f"{stem}.processor.{last}")] = Place((layer,), False)
    return found


def in_order(denoiser: ModelMixin, place: Place, rows: Tensor) -> Tensor:
    """A layer's rows as the denoiser has them: the authors' last norms have the shift before the scale, diffusers' after."""
    parent = denoiser.get_submodule(place.layers[0].rpartition(".")[0])
    return cat(rows.chunk(2)[::-1]) if place.theirs and isinstance(parent, AdaLayerNormContinuous) else rows


def _authors(denoiser: ModelMixin, own: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    kind = type(denoiser).__name__
    if kind == "FluxTransformer2DModel":
        yield from FLUX_ENDS.items()
        yield from _numbered("double_blocks", FLUX_DOUBLE, "transformer_blocks", len(denoiser.transformer_blocks))
        yield from _numbered("single_blocks", FLUX_SINGLE, "single_transformer_blocks", len(denoiser.single_transformer_blocks))
    elif kind == "SD3Transformer2DModel":
        yield from SD3_ENDS.items()
        yield from _numbered("joint_blocks", SD3_BLOCK, "transformer_blocks", len(denoiser.transformer_blocks))
    elif kind == "UNet2DConditionModel":
        yield from UNET_ENDS.items()
        parts = {ours: theirs for theirs, ours in _unet_parts(denoiser)}
        for words in (layer.split(".") for layer in own):
            for length in (3, 4, 5):  # of a part's name: of the middle, of others, of a downsampler's only layer
                if theirs := parts.get(".".join(words[:length])):
                    inner = ".".join(words[length:])
                    yield f"{theirs}.{UNET_RESNET.get(inner, inner)}".rstrip("."), (".".join(words),)


def _numbered(theirs: str, block: Names, ours: str, count: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for i in range(count):
        for name, found in block.items():
            yield f"{theirs}.{i}.{name}", tuple(f"{ours}.{i}.{layer}" for layer in found)


def _unet_parts(unet: UNet2DConditionModel) -> Iterator[tuple[str, str]]:
    """The original name of each resnet, attention and resampler of a UNet, and diffusers' name."""
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"input_blocks.{number}.0", f"down_blocks.{i}.resnets.{j}"
            yield f"input_blocks.{number}.1", f"down_blocks.{i}.attentions.{j}"
            number += 1
        if block.downsamplers:
            yield f"input_blocks.{number}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
            number += 1
    for j in range(len(unet.mid_block.resnets) if unet.mid_block is not None else 0):
        yield f"middle_block.{2 * j}", f"mid_block.resnets.{j}"
        yield f"middle_block.{2 * j + 1}", f"mid_block.attentions.{j}"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            yield f"output_blocks.{number}.0", f"up_blocks.{i}.resnets.{j}"
            yield f"output_blocks.{number}.1", f"up_blocks.{i}.attentions.{j}"
            number += 1
        if block.upsamplers:
            place = 2 if getattr(block, "attentions", None) else 1
            yield f"output_blocks.{number - 1}.{place}", f"up_blocks.{i}.upsamplers.0"  # its layer is "conv" in both


def _flat(name: str) -> str:
    return name.replace(".", "_")
