"""Every published LoRA format against what stock diffusers or peft make of the same file, and what stock lets
through."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from aig.method import adapters
from aig.published import loras
from tests import families
from tests.lorafiles import ALPHA, assert_same_tuning, saved, stock, weights


@pytest.fixture(scope="module", params=["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def family(request, tmp_path_factory):
    """A pipeline and its LoRA as diffusers saves it."""
    pipe = families.build(request.param)
    return pipe, families.lora(pipe, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    pipe = families.build("sd")
    return pipe, families.lora(pipe, tmp_path_factory.mktemp("sd"))


def in_old_format(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers wrote attention processors before peft: attn1.processor.to_q_lora.down.weight."""
    renamed = {}
    for key, tensor in tensors.items():
        key = key.replace("lora_A", "down").replace("lora_B", "up")
        renamed[re.sub(r"\.(to_\w+?)(?:\.0)?\.(down|up)\.", r".processor.\1_lora.\2.", key)] = tensor
    return renamed


def in_kohya_format(tensors: dict[str, Tensor], alpha: float = ALPHA) -> dict[str, Tensor]:
    """lora_unet_down_blocks_1_..._to_q.lora_down.weight, with an alpha beside it."""
    renamed = {}
    for key, tensor in tensors.items():
        layer, half = re.fullmatch(r"unet\.(.+)\.lora_([AB])\.weight", key).groups()
        name = "lora_unet_" + layer.replace(".", "_")
        renamed[f"{name}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(alpha)
    return renamed


def test_diffusers_format_of_every_family(family) -> None:
    pipe, path = family
    if hasattr(pipe, "load_lora_weights"):
        expected = stock(pipe, path)
    else:  # PixArt's pipeline class has no LoRA methods: peft itself
        other = copy.copy(pipe)
        other.transformer = copy.deepcopy(pipe.transformer)
        families.attach(other, path)
        for layer in adapters.lora_layers(other.transformer):
            layer.merge()
        adapters.detach(other.transformer)
        expected = weights(other.transformer)
    assert_same_tuning(pipe, path, expected)


def test_alpha_in_the_metadata(sd, tmp_path) -> None:
    pipe, path = sd
    settings = {
        "unet.r": 2,
        "unet.lora_alpha": 3,
        "unet.target_modules": ["to_q", "to_v", "to_out.0"],
        "unet.alpha_pattern": {"to_v": 1},
    }
    path = saved(tmp_path / "pytorch_lora_weights.safetensors", load_file(path), {"lora_adapter_metadata": json.dumps(settings)})
    assert_same_tuning(pipe, path, stock(pipe, path))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_old_diffusers_format(name: str, tmp_path) -> None:
    pipe = families.build(name)
    tensors = in_old_format(load_file(families.lora(pipe, tmp_path)))
    assert any(".processor.to_out_lora.up." in key for key in tensors)
    path = saved(tmp_path / "old.safetensors", tensors)
    assert_same_tuning(pipe, path, stock(pipe, path))
    bare = saved(tmp_path / "bare.safetensors", {key.removeprefix("unet."): tensor for key, tensor in tensors.items()})
    assert_same_tuning(pipe, bare, stock(pipe, path))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_kohya_format(name: str, tmp_path) -> None:
    pipe = families.build(name)
    path = saved(tmp_path / "kohya.safetensors", in_kohya_format(load_file(families.lora(pipe, tmp_path))))
    assert_same_tuning(pipe, path, stock(pipe, path))


def test_kohya_alphas_that_differ_are_each_obeyed(sd, tmp_path) -> None:
    """Stock loading gives layers of attention the commonest alpha; the file says otherwise."""
    pipe, path = sd
    tensors = in_kohya_format(load_file(path))
    odd = next(key for key in tensors if "to_v.alpha" in key)
    tensors[odd] = torch.tensor(0.5)
    plain = adapters.increments(pipe.unet, loras.read(path, pipe))
    mixed = adapters.increments(pipe.unet, loras.read(saved(tmp_path / "mixed.safetensors", tensors), pipe))
    for layer, increment in plain.items():
        strength = 0.25 if "lora_unet_" + layer.replace(".", "_") + ".alpha" == odd else ALPHA / 2
        torch.testing.assert_close(mixed[layer], strength * increment)


def test_kohya_format_of_flux(tmp_path) -> None:
    pipe = families.build("flux")
    torch.manual_seed(2)
    width = pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim
    tensors = {}
    for layer, out in (
        ("img_attn_qkv", 3 * width),
        ("img_attn_proj", width),
        ("txt_attn_qkv", 3 * width),
        ("img_mlp_0", 4 * width),
    ):
        name = f"lora_unet_double_blocks_0_{layer}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, width)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 2)
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    path = saved(tmp_path / "kohya.safetensors", tensors)
    assert_same_tuning(pipe, path, stock(pipe, path))


@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_peft_folder(name: str, tmp_path) -> None:
    """adapter_model.safetensors and adapter_config.json, as Flow-GRPO publishes them."""
    pipe = families.build(name)
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["to_q", "to_k", "to_out.0"],
        alpha_pattern={"to_k": 1},
        init_lora_weights=False,
    )
    get_peft_model(copy.deepcopy(pipe.transformer), config).save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(copy.deepcopy(pipe.transformer), str(tmp_path)).merge_and_unload()
    assert_same_tuning(pipe, tmp_path / "adapter_model.safetensors", weights(merged))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (
        {
            "use_dora": (True, "asks for use_dora = True"),
            "bias": ("all", "asks for bias = 'all'"),
            "modules_to_save": (["proj_out"], "asks for modules_to_save"),
            "peft_type": ("LOHA", "does not describe a LoRA"),
            "lora_alpha": (1e9, "alpha / rank is .* is sane"),
            "r": ("2", "gives no number for r"),
            "alpha_pattern": ({"(a+)+": 1}, "is not a layer name"),
        }.items()
        if name == "sd3"
        else ()
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {change: message[0]}))
        with pytest.raises(ValueError, match=message[1]):
            loras.read(tmp_path / "adapter_model.safetensors", pipe)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="needs adapter_config.json beside it"):
        loras.read(tmp_path / "adapter_model.safetensors", pipe)


def test_what_is_refused(sd, tmp_path) -> None:
    pipe, path = sd
    kohya = in_kohya_format(load_file(path))
    down = next(key for key in kohya if key.endswith("lora_down.weight"))
    layer = down.removesuffix(".lora_down.weight")
    before = weights(pipe.unet)
    for name, (change, message) in {
        "text encoder": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4)}, "also tunes the text encoder .1 tensors"),
        "DoRA": ({f"{layer}.dora_scale": torch.ones(1, 4)}, "the file is DoRA"),
        "LoHa": ({f"{layer}.hada_w1_a": torch.ones(4, 2)}, "the file is LoHa"),
        "LoKr": ({f"{layer}.lokr_w1": torch.ones(4, 2)}, "the file is LoKr"),
        "bias": ({f"{layer}.diff_b": torch.ones(4)}, "the file is a LoRA with a bias difference, by its .*diff_b'"),
        "other": ({"cond_stage_model.weight": torch.ones(4, 2)}, "holds 'cond_stage_model.weight', which is no part"),
        "unknown layer": ({key.replace("down_blocks", "side_blocks"): tensor for key, tensor in kohya.items() if layer in key}, "side"),
        "negative": ({f"{layer}.alpha": torch.tensor(-1.0)}, "alpha / rank is -0.5"),
        "zero": ({f"{layer}.alpha": torch.tensor(0.0)}, "alpha / rank is 0"),
        "absurd": ({f"{layer}.alpha": torch.tensor(1e9)}, "alpha / rank is 5e"),
        "nan": ({f"{layer}.alpha": torch.tensor(float("nan"))}, "alpha / rank is nan"),
        "two numbers": ({f"{layer}.alpha": torch.ones(2)}, "is not one number"),
        "stray alpha": ({"lora_unet_nothing.alpha": torch.tensor(1.0)}, "'lora_unet_nothing.alpha' is not beside a LoRA layer"),
        "half": ({re.sub("to_(q|v|out_0)[.]", "to_k.", down): kohya[down]}, "has only one half of a layer, 'lora_unet"),
    }.items():  # fmt: skip
        bad = saved(tmp_path / "bad.safetensors", {**kohya, **change})
        with pytest.raises(ValueError, match=message) as caught:
            adapters.check(pipe.unet, loras.read(bad, pipe))
            pytest.fail(f"{name} was let through")
        assert "\n" not in str(caught.value), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(pipe.unet).items())


def test_a_negative_alpha_for_flux_is_refused_before_stock_mapping_hangs_on_it(tmp_path) -> None:
    pipe = families.build("flux")
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 32),
        f"{name}.lora_up.weight": torch.ones(32, 2),
        f"{name}.alpha": torch.tensor(-1.0),
    }
    with pytest.raises(ValueError, match="alpha / rank is -0.5"):
        loras.read(saved(tmp_path / "loop.safetensors", tensors), pipe)
