"""What is refused of LoRA files: other kinds of adapters, files for other models, and whatever strangers may write.

Each with one sentence that names the file's own key.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor

from aig.method import adapters
from aig.published import loras
from aig.published.folders import short
from tests.lorafiles import flux_sizes, halves, in_kohya, in_peft, own_halves, pipeline, saved

FILE = "lora.safetensors"


@pytest.mark.parametrize("kind, message", [
    (LoHaConfig, "the file is LoHa, by its '.*hada_w1_a'"),
    (LoKrConfig, "the file is LoKr, by its '.*lokr_w[12](_a)?'"),
    (partial(LoraConfig, use_dora=True), "the file is DoRA, by its '.*lora_magnitude_vector.*'"),
    (partial(LoraConfig, bias="lora_only"), "a LoRA with a bias difference, by its '.*bias'"),
    (partial(LoraConfig, lora_bias=True), "a LoRA with a bias difference, by its '.*lora_B.bias'"),
    (partial(LoraConfig, modules_to_save=["conv_in"]), "'.*conv_in.*', which is no part|a LoRA with"),
    (partial(LoraConfig, init_lora_weights="pissa"), "adapter_config.json asks for init_lora_weights = 'pissa'"),
])  # fmt: skip
def test_other_kinds_of_adapter_are_called_by_their_names(kind, message: str, tmp_path) -> None:
    pipe = pipeline("sd")
    get_peft_model(copy.deepcopy(pipe.unet), kind(r=2, target_modules=["to_out.0"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        loras.read(tmp_path / "adapter_model.safetensors", pipe)


def test_settings_in_the_metadata_of_what_is_no_plain_lora(tmp_path) -> None:
    pipe = pipeline("sd")
    tensors = in_peft(own_halves(pipe.unet), "unet.")
    for values, message in (
        ({"unet.use_dora": True}, "the file's metadata asks for use_dora = True"),
        ({"init_lora_weights": "pissa_niter_4"}, "asks for init_lora_weights = 'pissa_niter_4'"),
        ({"unet.lora_alpha": 10**400}, "beyond all numbers"),
        ({"unet.alpha_pattern": {"to_q": "1"}}, "alpha '1' is not a number"),
    ):
        with pytest.raises(ValueError, match=message):
            loras.read(saved(tmp_path / FILE, tensors, {"lora_adapter_metadata": json.dumps(values)}), pipe)
    path = saved(tmp_path / FILE, in_kohya(own_halves(pipe.unet)), {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4})})
    with pytest.raises(ValueError, match="has the alpha 'lora_unet_conv_in.alpha' and another one in the file's metadata"):
        loras.read(path, pipe)


def test_files_for_another_model_are_refused_by_their_own_keys(tmp_path) -> None:
    flux = halves(flux_sizes(32))
    wide = in_kohya(halves({"single_blocks.0.linear1": (7 * 48, 48)}))
    rows = in_kohya(halves({"single_blocks.0.linear1": (21504, 32)}))
    for family, tensors, message in (
        ("flux", wide, r"'lora_unet_single_blocks_0_linear1.lora_down.weight' has the shape \(2, 48\), but .* takes \(2, 32\)"),
        ("flux", rows, r"'lora_unet_single_blocks_0_linear1.lora_up.weight' has the shape \(21504, 2\), but .* takes \(224, 2\)"),
        ("flux-schnell", in_kohya(flux), "'lora_unet_guidance_in_in_layer.lora_down.weight' belongs to no .* of FluxTransformer2DModel"),
        ("sd3", in_kohya(flux), "'lora_unet_double_blocks_0_.*' belongs to no .* of SD3Transformer2DModel|'lora_unet_img_in"),
        ("sd", in_kohya(flux), "'lora_unet_.*' belongs to no .* of UNet2DConditionModel"),
        ("flux", in_kohya({"double_blocks.7.img_attn.proj": flux["double_blocks.0.img_attn.proj"]}), "'lora_unet_double_blocks_7_img"),
        ("flux", {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16)}, "with weights of a norm, by its 'double_blocks.0.img"),
        (
            "flux",
            in_peft(own_halves(pipeline("flux").transformer), "base_model.model."),
            "peft's format, by its 'base_model.*adapter_config",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            loras.read(saved(tmp_path / FILE, tensors), pipeline(family))
        assert "\n" not in str(caught.value)


def base_files() -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Sound files of several formats, each with the family that it is for."""
    unet, flux = own_halves(pipeline("sd").unet), halves(flux_sizes(32))
    some = {name: pair for name, pair in unet.items() if "attn1" in name or name == "conv_in"}
    xlabs = {"double_blocks.0.processor.qkv_lora1": (96, 32), "single_blocks.0.processor.proj_lora": (32, 160)}
    return {
        "diffusers": ("sd", in_peft(some, "unet.")),
        "bare": ("sd", in_peft(some, "")),
        "kohya": ("sd", in_kohya(some)),
        "kohya's FLUX": ("flux", in_kohya(flux)),
        "peft's FLUX": ("flux", in_peft(flux, "base_model.model.")),
        "xlabs": (
            "flux",
            {f"{name}.{half}.weight": tensor for name, pair in halves(xlabs).items() for half, tensor in zip(("down", "up"), pair)},
        ),
    }


BASES = base_files()
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda t: torch.tensor(1.0),
    "flat": lambda t: t.flatten(),
    "empty": lambda t: torch.zeros(0, 4),
    "whole": lambda t: t.to(torch.int32),
    "bytes": lambda t: torch.ones(t.shape, dtype=torch.uint8),
    "booleans": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "eight bits": lambda t: t.to(torch.float8_e4m3fn),
    "powers": lambda t: torch.ones(t.shape).to(torch.float8_e8m0fnu),
    "four bits": lambda t: torch.zeros(2, 16, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "infinite": lambda t: torch.full_like(t, float("inf")),
    "huge": lambda t: torch.full_like(t, 1e38),
    "double": lambda t: t.double() * 1e200,
    "zero": torch.zeros_like,
    "negative": lambda t: -t.abs(),
    "transposed": lambda t: t.transpose(0, -1) if t.ndim else t,
    "deeper": lambda t: torch.cat([t, t]) if t.ndim else torch.ones(2),
    "many dimensions": lambda t: t.reshape(*t.shape, *(1,) * 20),
    "narrow": lambda t: t[..., :1] if t.ndim else t,
}
NAMES: dict[str, Callable[[str], str]] = {
    "a megabyte": lambda key: "x" * 2**20 + key,
    "a megabyte of fronts": lambda key: "unet." * 2**18 + key,
    "lines": lambda key: key.replace(".", "\n", 1),
    "NUL": lambda key: "\0" + key,
    "markup": lambda key: "<img onerror=alert(1)>" + key,
    "no name": lambda key: "",
    "a dot": lambda key: ".",
    "only a half": lambda key: ".lora_A.weight",
    "an alpha": lambda key: ".alpha",
    "no layer": lambda key: key.replace("blocks", "socks"),
    "a far block": lambda key: key.replace("0", "9" * 40),
    "another front": lambda key: "transformer.unet._orig_mod." + key,
    "another half": lambda key: key.replace("lora_A", "lora_B").replace("down", "up"),
    "an adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "two names": lambda key: key + "." + key,
    "the text's": lambda key: "text_encoder." + key,
    "DoRA": lambda key: key.rpartition(".")[0] + ".dora_scale",
    "a difference": lambda key: key.rpartition(".")[0] + ".diff",
    "a norm": lambda key: "norm" * 100 + ".scale",
    "Unicode": lambda key: "\u202e\U0001f600" + key,
}
NUMBERS = [0, -1, 1e30, 10**400, float("nan"), float("inf"), None, True, "1", [], {}]
METADATA = st.dictionaries(
    st.sampled_from(["unet.lora_alpha", "lora_alpha", "alpha_pattern", "transformer.alpha_pattern", "use_rslora", "bias", "use_dora", "x"]),
    st.sampled_from(NUMBERS) | st.dictionaries(st.sampled_from(["to_q", "(a+)+$", "", "x" * 5000]), st.sampled_from(NUMBERS), max_size=2),
    max_size=3,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["drop", "copy", "rename", "value", "swap"]), st.integers(0, 99), st.sampled_from(sorted(VALUES)), st.sampled_from(sorted(NAMES))),
    max_size=3,
)  # fmt: skip


def changed(tensors: dict[str, Tensor], changes: list[tuple[str, int, str, str]]) -> dict[str, Tensor]:
    found = dict(tensors)
    for what, place, value, name in changes:
        if not found:
            break
        key = list(found)[place % len(found)]
        if what == "drop":
            found.pop(key)
        elif what == "copy":
            found[NAMES[name](key)] = found[key]
        elif what == "rename":
            found[NAMES[name](key)] = found.pop(key)
        elif what == "swap":
            other = list(found)[(place + 1) % len(found)]
            found[key], found[other] = found[other], found[key]
        elif found[key].dtype == torch.float32:
            found[key] = VALUES[value](found[key])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile") / FILE


@settings(max_examples=120, deadline=None)
@given(base=st.sampled_from(sorted(BASES)), changes=CHANGES, metadata=st.just({}) | METADATA)
def test_whatever_is_in_a_file_it_is_read_whole_or_refused_in_one_sentence(place, base, changes, metadata) -> None:
    family, tensors = BASES[base]
    tensors = changed(tensors, changes)
    saved(place, tensors, {"lora_adapter_metadata": json.dumps(metadata)})
    denoiser = adapters.denoiser(pipeline(family))
    try:
        found = loras.read(place, pipeline(family))
    except ValueError as error:
        message = str(error)
        named = any(short(key, 200)[:-4] in message for key in tensors)
        assert named or any(
            text in message for text in ("holds no tensors", "metadata asks for", "alpha", "cannot be read as safetensors")
        ), message
        assert "\n" not in message and len(message) < 600
    else:
        downs = [key for key in tensors if re.search(r"lora_A\.|lora_down\.|\.down\.weight$", key)]
        assert len(found) >= 2 * len(downs) > 0
        for increment in adapters.increments(denoiser, found).values():
            assert torch.isfinite(increment).all()


def test_flipped_and_cut_bytes_are_refused_in_one_sentence(place) -> None:
    family, tensors = BASES["kohya"]
    content = saved(place, tensors).read_bytes()
    spoilt = [content[:length] for length in (0, 1, 7, 8, 9, 100, 1000, len(content) - 1)]
    spoilt += [bytes([*content[:i], content[i] ^ 0x20, *content[i + 1 :]]) for i in (0, 3, 7, 8, 12, 20, 40, 77)]
    spoilt += [b"", b"\0" * 8, b"\xff" * 100, (2).to_bytes(8, "little") + b"{}", (8).to_bytes(8, "little") + b"[" * 8]
    for data in spoilt:
        place.write_bytes(data)
        try:
            loras.read(place, pipeline(family))
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
