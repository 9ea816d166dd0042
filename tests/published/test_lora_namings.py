"""Every naming of published LoRA files against W0 + alpha/rank * B @ A by the file's own keys.

Where trainers use the names of a model's authors, the increments are made in the authors' layout, and stock
conversion of a whole checkpoint brings them into diffusers': another road than the one of LoRA files, and linear.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from aig.method import adapters
from aig.published import loras
from tests import families
from tests.lorafiles import (
    ALPHA,
    RANK,
    Pairs,
    Sizes,
    assert_reads,
    assert_same_tuning,
    flux_sizes,
    halves,
    in_kohya,
    in_peft,
    own_halves,
    own_layers,
    pipeline,
    product,
    saved,
    stock,
)  # fmt: skip

FILE = "lora.safetensors"


def sd3_sizes(width: int) -> Sizes:
    """The layers of an SD 3 whose one block is the last, by Stability's names."""
    block = "joint_blocks.0."
    return {
        "x_embedder.proj": (width, 4, 2, 2),
        "context_embedder": (width, 32),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, 32),
        "y_embedder.mlp.2": (width, width),
        block + "x_block.attn.qkv": (3 * width, width),
        block + "context_block.attn.qkv": (3 * width, width),
        block + "x_block.attn.proj": (width, width),
        block + "x_block.mlp.fc1": (4 * width, width),
        block + "x_block.mlp.fc2": (width, 4 * width),
        block + "x_block.adaLN_modulation.1": (6 * width, width),
        block + "context_block.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (16, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }


class Checkpoint(dict):
    """It has every key that conversion asks for, 0 where nothing was put: biases and norms, the longest 7 widths long."""

    def pop(self, key: str, *default: object) -> Tensor:
        return super().pop(key, torch.zeros(7 * 32))


def converted(convert: Callable, increments: Mapping[str, Tensor], width: int = 3072) -> dict[str, Tensor]:
    """Stock conversion of a checkpoint, for another width than the one that it has in its code."""
    constants = tuple(width if value == 3072 else value for value in convert.__code__.co_consts)
    resized = types.FunctionType(convert.__code__.replace(co_consts=constants), convert.__globals__)
    found = resized(Checkpoint({f"{name}.weight": tensor for name, tensor in increments.items()}))
    return {key.removesuffix(".weight"): tensor for key, tensor in found.items() if key.endswith(".weight") and tensor.any()}


@cache
def authored(family: str) -> tuple[Pairs, dict[str, Tensor]]:
    """Halves for all layers in the authors' layout, and what they change without an alpha."""
    width = {"flux": 32, "sd3": 16}[family]
    pairs = halves({"flux": flux_sizes, "sd3": sd3_sizes}[family](width))
    convert = getattr(single_file_utils, f"convert_{family}_transformer_checkpoint_to_diffusers")
    return pairs, converted(convert, {name: product(*pair) for name, pair in pairs.items()}, width)


def times(increments: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    return {layer: strength * increment for layer, increment in increments.items()}


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_the_authors_names_of_a_transformer(family: str, tmp_path) -> None:
    """kohya's files, with the layers at both ends; ComfyUI's, with dots; and peft's, whose trainers mean alpha = rank."""
    pipe, (pairs, expected) = pipeline(family), authored(family)
    assert expected.keys() == own_layers(pipe.transformer).keys()
    assert_reads(pipe, in_kohya(pairs), times(expected, ALPHA / RANK), tmp_path)
    assert_reads(pipe, in_kohya(pairs, alpha=None), expected, tmp_path)
    assert_reads(pipe, in_peft(pairs, "diffusion_model."), expected, tmp_path)
    blocks = {name: pair for name, pair in pairs.items() if "_blocks." in name}
    changed = {layer: increment for layer, increment in expected.items() if "_blocks." in layer}
    assert_reads(pipe, in_peft(blocks, "base_model.model."), changed, tmp_path)


def test_an_sd3_of_two_blocks_with_the_second_attention_of_the_medium_model(tmp_path) -> None:
    """A block before the last also changes the text; its first norm has three times as many rows for each attention."""
    pipe = copy.copy(pipeline("sd3"))
    settings = {"num_layers": 2, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    pipe.transformer = SD3Transformer2DModel(**{**pipe.transformer.config, **settings})
    sizes = {name.replace("blocks.0", "blocks.1"): size for name, size in sd3_sizes(16).items()}
    first = {"x_block.attn2.qkv": (48, 16), "x_block.attn2.proj": (16, 16), "x_block.adaLN_modulation.1": (144, 16)}
    first |= {"context_block.attn.proj": (16, 16), "context_block.mlp.fc1": (64, 16), "context_block.mlp.fc2": (16, 64)}
    first |= {"context_block.adaLN_modulation.1": (96, 16)}
    pairs = halves(sd3_sizes(16) | sizes | {f"joint_blocks.0.{name}": size for name, size in first.items()})
    convert = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    expected = converted(convert, {name: product(*pair) for name, pair in pairs.items()}, 16)
    assert expected.keys() == own_layers(pipe.transformer).keys()
    assert_reads(pipe, in_kohya(pairs), times(expected, ALPHA / RANK), tmp_path)


@pytest.mark.parametrize("layout", ["attention last", "attention first"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_original_names_of_a_unet(layout: str, kind: str, tmp_path) -> None:
    pipe = copy.copy(pipeline(kind))
    resnets = ["middle_block.0", "middle_block.2"]
    if layout == "attention last":
        resnets += ["input_blocks.1.0", "input_blocks.3.0", *(f"output_blocks.{i}.0" for i in range(4))]
        attentions, moves = (
            ["input_blocks.3.1", "output_blocks.0.1", "output_blocks.1.1"],
            ["input_blocks.2.0.op", "output_blocks.1.2.conv"],
        )
    else:  # as SD 1.5 and SDXL: an upsampler without attention before it, two layers in a block
        blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
        torch.manual_seed(4)
        pipe.unet = UNet2DConditionModel(**{**pipe.unet.config, **blocks, "layers_per_block": 2})
        resnets += [f"input_blocks.{i}.0" for i in (1, 2, 4, 5)] + [f"output_blocks.{i}.0" for i in range(6)]
        attentions = [f"{name}.1" for name in ("input_blocks.1", "input_blocks.2", "output_blocks.3", "output_blocks.4", "output_blocks.5")]
        moves = ["input_blocks.3.0.op", "output_blocks.2.1.conv"]
    names = ["input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", *moves]
    names += [f"{part}.{layer}" for part in resnets for layer in ("in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection")]
    for part in (*attentions, "middle_block.1"):
        names += [f"{part}.{layer}" for layer in ("proj_in", "proj_out")]
        for block in (f"{part}.transformer_blocks.{i}" for i in range(2)):
            names += [f"{block}.attn{i}.{layer}" for i in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")]
            names += [f"{block}.ff.net.0.proj", f"{block}.ff.net.2"]

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        checkpoint = {f"model.diffusion_model.{name}.{kind}": torch.zeros(1) for name in names for kind in ("weight", "bias")}
        checkpoint |= {f"model.diffusion_model.{name}.weight": tensor for name, tensor in tensors.items()}
        found = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, pipe.unet.config)
        return {key.removesuffix(".weight"): tensor for key, tensor in found.items() if key.endswith(".weight")}

    marks = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    own = own_layers(pipe.unet)
    theirs = {names[int(mark)]: layer for layer, mark in convert(marks).items() if layer in own}
    assert set(theirs.values()) == own.keys()
    pairs = halves({name: tuple(own[layer].weight.shape) for name, layer in theirs.items()})
    expected = convert({name: product(*pair) for name, pair in pairs.items()})
    expected = {layer: increment for layer, increment in expected.items() if layer in own}
    assert_reads(pipe, in_kohya(pairs), times(expected, ALPHA / RANK), tmp_path)
    assert_reads(pipe, in_peft(pairs, "model.diffusion_model."), expected, tmp_path)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_diffusers_names_whatever_is_in_front_of_them(family: str, tmp_path) -> None:
    pipe = pipeline(family)
    pairs = own_halves(families.denoiser(pipe))
    expected = {layer: product(*pair) for layer, pair in pairs.items()}
    part = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
    assert_reads(pipe, in_peft(pairs, f"{part}."), expected, tmp_path)
    pairs = dict(list(pairs.items())[::5])
    expected = {layer: expected[layer] for layer in pairs}
    for front in ("", "diffusion_model.", "_orig_mod.", f"{part}._orig_mod.", f"{part}.base_model.model."):
        assert_reads(pipe, in_peft(pairs, front), expected, tmp_path)
    assert_reads(pipe, in_peft(pairs, f"{part}.", middle=".default"), expected, tmp_path)
    for front in ("lora_unet_", "lora_transformer_", "lycoris_", "lora_unet__orig_mod_"):
        assert_reads(pipe, in_kohya(pairs, front), times(expected, ALPHA / RANK), tmp_path)
    underlined = {key.replace(".lora_", "_.lora_").replace(".alpha", "_.alpha"): tensor for key, tensor in in_kohya(pairs).items()}
    assert_reads(pipe, underlined, times(expected, ALPHA / RANK), tmp_path)
    compiled = {key.replace("blocks.0.", "blocks.0._orig_mod."): tensor for key, tensor in in_peft(pairs, f"{part}.").items()}
    assert_reads(pipe, compiled, expected, tmp_path)
    dotted = {f"{part}.{name}.lora{half}.weight": tensor for name, pair in pairs.items() for half, tensor in zip((".down", ".up"), pair)}
    dotted |= {f"{part}.{name}.alpha": torch.tensor([3]) for name in pairs}
    assert_reads(pipe, dotted, times(expected, 3 / RANK), tmp_path)


def test_xlabs_files_of_flux(tmp_path) -> None:
    """In its processors 1 is the image and 2 the text; a single block's qkv is the upper part of linear1."""
    pipe, width = pipeline("flux"), 32
    sizes = {f"double_blocks.0.processor.qkv_lora{side}": (3 * width, width) for side in (1, 2)}
    sizes |= {f"double_blocks.0.processor.proj_lora{side}": (width, width) for side in (1, 2)}
    sizes |= {"single_blocks.0.processor.qkv_lora": (3 * width, width), "single_blocks.0.processor.proj_lora": (width, 5 * width)}
    pairs = halves(sizes)
    changes = {name: product(*pair) for name, pair in pairs.items()}
    layout = {f"double_blocks.0.{side}_attn.{part}": changes[f"double_blocks.0.processor.{part}_lora{i}"]
              for i, side in ((1, "img"), (2, "txt")) for part in ("qkv", "proj")}  # fmt: skip
    layout["single_blocks.0.linear1"] = torch.cat([changes["single_blocks.0.processor.qkv_lora"], torch.zeros(4 * width, width)])
    layout["single_blocks.0.linear2"] = changes["single_blocks.0.processor.proj_lora"]
    expected = converted(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, layout, width)
    assert len(expected) == 12
    for front in ("", "diffusion_model."):
        tensors = {f"{front}{name}.{half}.weight": tensor for name, pair in pairs.items() for half, tensor in zip(("down", "up"), pair)}
        assert_reads(pipe, tensors, expected, tmp_path)
    assert_same_tuning(pipe, tmp_path / FILE, stock(pipe, tmp_path / FILE))


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "sana"])
def test_bare_files_of_save_lora_adapter(family: str, tmp_path) -> None:
    """Their names have nothing in front, nor have the settings in their metadata."""
    pipe = pipeline(family)
    twin = copy.deepcopy(families.denoiser(pipe))
    twin.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_out.0"], alpha_pattern={"to_q": 5}, init_lora_weights=False))
    twin.save_lora_adapter(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    tensors, expected = load_file(path), {}
    assert tensors and all(
        key.split(".")[0] in ("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks") for key in tensors
    )
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            expected[layer] = product(down, tensors[f"{layer}.lora_B.weight"], (5 if layer.endswith("to_q") else 3) / 2)
    found = adapters.increments(families.denoiser(pipe), loras.read(path, pipe))
    assert found.keys() == expected.keys()
    for layer, increment in expected.items():
        torch.testing.assert_close(found[layer], increment)


def test_namings_may_be_mixed_as_long_as_each_layer_is_tuned_once(tmp_path) -> None:
    pipe, (pairs, expected) = pipeline("flux"), authored("flux")
    ours = own_halves(pipe.transformer)
    here = {name: pair for name, pair in ours.items() if name.startswith("transformer_blocks")}
    there = {name: pair for name, pair in pairs.items() if not name.startswith("double_blocks")}
    mixed = {layer: product(*pair) for layer, pair in here.items()}
    mixed |= {layer: increment for layer, increment in times(expected, ALPHA / RANK).items() if layer not in here}
    assert_reads(pipe, in_peft(here, "transformer.") | in_kohya(there), mixed, tmp_path)
    twice = in_kohya({"single_blocks.0.linear1": pairs["single_blocks.0.linear1"]})
    twice |= in_peft({"single_transformer_blocks.0.proj_mlp": ours["single_transformer_blocks.0.proj_mlp"]}, "transformer.")
    with pytest.raises(ValueError, match=r"tunes 'single_transformer_blocks.0.proj_mlp' twice, by .*lora_[Ad].* and .*lora_[Ad]"):
        loras.read(saved(tmp_path / FILE, twice), pipe)


def test_what_changes_nothing_is_passed_over(tmp_path) -> None:
    """Trainers leave differences of 0 and untouched layers of the text encoder in their files."""
    pipe = pipeline("sd")
    pairs = own_halves(pipe.unet)
    idle = in_kohya({"text_model_encoder_layers_0_mlp_fc1": (torch.ones(2, 4), torch.zeros(8, 2))}, "lora_te_")
    idle |= {"lora_unet_conv_in.diff_b": torch.zeros(8), "lora_unet_conv_norm_out.diff": torch.zeros(8)}
    expected = {layer: ALPHA / RANK * product(*pair) for layer, pair in pairs.items()}
    assert_reads(pipe, in_kohya(pairs) | idle, expected, tmp_path)
    for key in idle:
        if not key.endswith(("alpha", "down.weight")):
            with pytest.raises(ValueError, match="text encoder .3 tensors|with a bias difference|whole-weight difference"):
                loras.read(saved(tmp_path / FILE, in_kohya(pairs) | idle | {key: torch.ones_like(idle[key])}), pipe)


def test_halves_of_a_one_by_one_convolution_are_those_of_a_linear_layer(tmp_path) -> None:
    """SD 1.x has proj_in as a convolution and SDXL as a linear layer, and trainers write either shape for both."""
    for family in ("sd", "sdxl"):
        pipe = pipeline(family)
        layer = "mid_block.attentions.0.proj_in"
        down, up = torch.randn(RANK, 16), torch.randn(16, RANK)
        for shape in ((), (1, 1)):
            pair = {layer: (down.view(*down.shape, *shape), up.view(*up.shape, *shape))}
            assert_reads(pipe, in_kohya(pair), {layer: ALPHA / RANK * up @ down}, tmp_path)
        adapters.switched(copy.deepcopy(pipe.unet), loras.read(tmp_path / FILE, pipe))


def test_a_narrow_layer_may_have_the_rank_of_the_wide_ones(tmp_path) -> None:
    """FLUX's img_in takes 64 numbers and its last layer gives 64, where files of rank 128 are common; here it is 16."""
    pipe = pipeline("flux")
    torch.manual_seed(5)
    pairs = {"img_in": (torch.randn(24, 16), torch.randn(32, 24)), "final_layer.linear": (torch.randn(24, 32), torch.randn(16, 24))}
    pairs["final_layer.adaLN_modulation.1"] = (torch.randn(40, 32), torch.randn(64, 40))
    changes = {name: product(*pair) for name, pair in pairs.items()}
    blocks = {"double_blocks.0.img_attn.proj": torch.zeros(32, 32), "single_blocks.0.linear2": torch.zeros(32, 160)}
    expected = converted(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, changes | blocks, 32)
    expected = {layer: ALPHA / (40 if layer == "norm_out.linear" else 24) * change for layer, change in expected.items()}
    assert expected.keys() == {"x_embedder", "proj_out", "norm_out.linear"}
    assert_reads(pipe, in_kohya(pairs), expected, tmp_path)
    unet = pipeline("sd")
    pair = {"conv_in": (torch.randn(40, 4, 3, 3), torch.randn(8, 40, 1, 1))}
    assert_reads(unet, in_kohya(pair), {"conv_in": ALPHA / 40 * product(*pair["conv_in"])}, tmp_path)
    for rank in (300, 4096):
        pair = {"conv_in": (torch.randn(rank, 4, 3, 3), torch.randn(8, rank, 1, 1))}
        with pytest.raises(ValueError, match=f"has rank {rank} in 'lora_unet_conv_in.lora_down.weight', where 1 to 256 is possible"):
            loras.read(saved(tmp_path / FILE, in_kohya(pair)), unet)
