"""LoRA files in the formats that are published, as one: ``unet.LAYER.lora_A.weight`` and ``lora_B.weight``, alpha
folded in.

Read are peft's own folders (adapter_model.safetensors with adapter_config.json), diffusers' newer and older formats,
and kohya's (``lora_unet_...``, also of FLUX). The names are mapped by the stock pipeline class; everything that stock
mapping lets through in silence or stumbles over is checked first. The values are checked where they are used,
``aig.adapters``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor

from aig import adapters

MAX_SETTINGS = 1_000_000  # bytes of an adapter_config.json
_PEFT = "base_model.model."
_HALF = re.compile(r"(.+?)(?:\.lora_|[._]lora\.)(A|B|down|up)\.weight")
_UPS = ("lora_B", "lora_up", "lora.up")
_OTHER_KINDS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "Tucker LoCon",
    "oft_": "OFT", "diff_b": "a bias difference", ".diff": "a whole-weight difference",
}  # fmt: skip


def read(path: Path, pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The tensors of a LoRA file for a pipeline's denoiser, alpha/rank folded into ``lora_B``.

    Raises ValueError with one sentence for a file that is no safetensors, another kind of adapter (DoRA, LoHa, LoKr),
    parts for the text encoder, an alpha that cannot be right, and names that the stock pipeline class cannot map. AIG
    mixes the predictions of two denoisers at the same prompt, so a LoRA that also changes the prompt's encoding is
    refused whole: half of it would not be the model that was published.
    """
    tensors, settings = adapters._read(path)
    part = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    if any(key.startswith(_PEFT) for key in tensors):
        tensors = {f"{part}.{key.removeprefix(_PEFT)}": tensor for key, tensor in tensors.items()}
        settings = _peft_settings(path.parent / "adapter_config.json", part)
    _check_names(tensors)
    if not all(re.search(r"\.lora_[AB]\.weight$", key) for key in tensors):
        tensors = _renamed(_alpha_folded(tensors), pipe, part)
    return _settings_folded(tensors, settings)


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    """Only halves of a LoRA and their alphas, none of the text encoder."""
    for key in tensors:
        for mark, kind in _OTHER_KINDS.items():
            if mark in key:
                raise ValueError(f"the file is {kind}, by its {key!r}; only plain LoRA can be mixed here")
    if texts := [key for key in tensors if re.match(r"(text_encoder|lora_te)", key)]:
        raise ValueError(
            f"the LoRA also tunes the text encoder ({len(texts)} tensors, {texts[0]!r}), but AIG mixes denoisers that "
            "share a prompt: use a LoRA of the denoiser alone"
        )
    for key in tensors:
        if not _HALF.fullmatch(key) and not key.endswith(".alpha"):
            raise ValueError(f"the LoRA holds {key!r}, which is no part of a LoRA")
    if not tensors:
        raise ValueError("the LoRA holds no tensors")


def _alpha_folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each layer's up half times its alpha/rank, without the alphas.

    Done before stock mapping, which loops for ever over a negative alpha of a kohya file for FLUX.
    """
    alphas = {key.removesuffix(".alpha"): tensor for key, tensor in tensors.items() if key.endswith(".alpha")}
    halves = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    found = {key: _HALF.fullmatch(key) for key in halves}
    ranks = {
        match[1]: len(halves[key]) for key, match in found.items() if match[2] in ("A", "down") and halves[key].ndim
    }
    strengths = {layer: _strength(alpha, layer, ranks) for layer, alpha in alphas.items()}
    return {
        key: tensor.float() * strengths.get(found[key][1], 1.0) if found[key][2] in ("B", "up") else tensor
        for key, tensor in halves.items()
    }


def _strength(alpha: Tensor, layer: str, ranks: Mapping[str, int]) -> float:
    if alpha.numel() != 1 or layer not in ranks:
        raise ValueError(f"the LoRA's alpha of {layer!r} is not one number beside a LoRA layer")
    strength = float(alpha) / max(ranks[layer], 1)
    if not 0 < strength <= adapters.MAX_STRENGTH:
        raise ValueError(
            f"the LoRA's alpha / rank is {strength:g} for {layer!r}, above 0 to {adapters.MAX_STRENGTH:g} is sane"
        )
    return strength


def _renamed(tensors: Mapping[str, Tensor], pipe: DiffusionPipeline, part: str) -> dict[str, Tensor]:
    """The tensors under diffusers' names with lora_A and lora_B, by the stock pipeline class where it has a mapping."""
    if not re.match(r"(unet|transformer|diffusion_model)\.|lora_|single_blocks|double_blocks", next(iter(tensors))):
        tensors = {f"{part}.{key}": tensor for key, tensor in tensors.items()}  # the oldest files name no part
    if hasattr(pipe, "lora_state_dict"):
        given = {"unet_config": pipe.unet.config} if part == "unet" else {}  # numbers of blocks, to map kohya's SDXL
        try:
            found = pipe.lora_state_dict(dict(tensors), **given)
        except (ValueError, KeyError, IndexError, AttributeError, RuntimeError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(f"the LoRA's layer names do not fit {type(pipe).__name__}: {reason}") from error
        found = found[0] if isinstance(found, tuple) else found
        if len(found) < len(tensors):  # stock mapping drops what it does not know
            raise ValueError(
                f"the LoRA's layer names do not fit {type(pipe).__name__}: {len(tensors) - len(found)} are unknown"
            )
        tensors = found
    return convert_unet_state_dict_to_peft(tensors)


def _settings_folded(tensors: Mapping[str, Tensor], settings: dict) -> dict[str, Tensor]:
    """Each layer's lora_B times the alpha/rank that the file's or the folder's settings give it."""
    folded = dict(tensors)
    for layer, (down, up) in adapters._pairs(tensors).items() if settings else ():
        strength = adapters._alpha_over_rank(settings, layer, len(down))
        if not 0 < strength <= adapters.MAX_STRENGTH:  # NaN too
            raise ValueError(
                f"the LoRA's alpha / rank is {strength:g} for {layer!r}, above 0 to {adapters.MAX_STRENGTH:g} is sane"
            )
        key = next(key for key in tensors if key.partition(".")[2] == f"{layer}.lora_B.weight")
        folded[key] = up.float() * strength
    return folded


def _peft_settings(path: Path, part: str) -> dict:
    """Alphas of a peft folder's adapter_config.json. ValueError for anything but plain LoRA."""
    if not path.is_file():
        raise ValueError(f"the LoRA is in peft's format, which needs {path.name} beside it for its alpha")
    try:
        content = json.loads(path.read_bytes()[: MAX_SETTINGS + 1]) if path.stat().st_size <= MAX_SETTINGS else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {type(error).__name__}") from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise ValueError(f"{path.name} does not describe a LoRA")
    plain = {
        "use_dora": (False, None),
        "bias": ("none", None),
        "fan_in_fan_out": (False, None),
        "modules_to_save": (None, []),
    }
    plain |= {"layer_replication": (None,), "lora_bias": (False, None), "use_qalora": (False, None)}
    for key, values in plain.items():
        if key in content and not any(content[key] is value or content[key] == value for value in values):
            raise ValueError(f"{path.name} asks for {key} = {content[key]!r}, only plain LoRA can be mixed here")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    for name, number in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{path.name} gives no number for {name}")
    wanted = ("lora_alpha", "alpha_pattern", "use_rslora")
    return {f"{part}.{key}": content[key] for key in wanted if key in content}
