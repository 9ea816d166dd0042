"""Weights of published rewards: read without running code, renamed as transformers names them, built into a model.

safetensors, and .pt files where the authors published nothing else. A .pt is a pickle: it is read with
``torch.load(weights_only=True)``, which calls no function of the file (torch 2.6 closed the last known way around that,
CVE-2025-32434), and then has to be nothing but named, dense, finite tensors of floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PICKLES = (".pt", ".pth")

OPEN_CLIP = {  # prefixes of open_clip's CLIP -> of transformers' CLIPModel
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
OPEN_CLIP_LAYER = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}

BLIP_VISION = {  # prefixes of BLIP's vision transformer -> of transformers' BlipVisionModel
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    "norm.": "post_layernorm.",
}
BLIP_VISION_LAYER = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pt or .pth file, on the CPU, mapped rather than copied.

    Counters of positions (``position_ids``), which old checkpoints contain, are left out. ValueError with one sentence
    unless the file is what its name says and contains only tensors of floats, flat or under the key "state_dict".
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(path)
        except SafetensorError as problem:
            raise ValueError(f"{path.name} is not a safetensors file: {problem}.") from None
    elif path.suffix in PICKLES:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except OSError:
            raise
        except Exception:  # whatever a damaged or hostile archive breaks: nothing of it was run, and nothing is used
            raise ValueError(f"{path.name} is refused: it is damaged, or has more in it than weights.") from None
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
    else:
        raise ValueError(f"{path.name} is not a weight file; choose one of: .safetensors, {', '.join(PICKLES)}.")
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path.name} is refused: it is not a table of named tensors.")
    tensors = {name: value for name, value in content.items() if not str(name).endswith("position_ids")}
    for name, value in tensors.items():
        if not isinstance(name, str) or not _plain(value):
            raise ValueError(f"{path.name} is refused: {str(name)[:100]!r} is not a plain tensor of floats.")
    return tensors


def _plain(value: Any) -> bool:
    if type(value) not in (torch.Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    # a stride of 0 makes terabytes of one number: everything claimed has to be there
    return value.is_floating_point() and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def head(tensors: Mapping[str, torch.Tensor], name: str) -> nn.Linear:
    """The head that ImageReward and LAION aesthetics share, ``layers.{0, 2, 4, 6, 7}``, between dropouts.

    There is no activation between its five linear layers, so it is one affine map, composed here in double precision.
    """
    weight = bias = None
    try:
        for i in (0, 2, 4, 6, 7):
            w, b = tensors[f"layers.{i}.weight"].double(), tensors[f"layers.{i}.bias"].double()
            weight, bias = (w, b) if weight is None or bias is None else (w @ weight, w @ bias + b)
    except (KeyError, RuntimeError):
        raise ValueError(f"The head of {name} has no layer {i} of the expected shape.") from None
    if weight.shape[0] != 1 or not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ValueError(f"The head of {name} is not a finite map to one number.")
    layer = nn.Linear(weight.shape[1], 1)
    layer.weight.data, layer.bias.data = weight.float(), bias.float()
    return layer


def from_open_clip(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's names and fused projections -> those of transformers' CLIPModel; unknown names are kept."""
    renamed = {}
    for name, value in tensors.items():
        target = _renamed(name, OPEN_CLIP, OPEN_CLIP_LAYER)
        if name in ("visual.proj", "text_projection"):
            value = value.T  # open_clip multiplies from the right
        if ".attn.in_proj_" in target:
            layer, kind = target.split(".attn.in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = part
        else:
            renamed[target] = value
    return renamed


def from_blip_vision(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of BLIP's vision transformer -> those of transformers' BlipVisionModel; unknown names are kept."""
    return {_renamed(name, BLIP_VISION, BLIP_VISION_LAYER): value for name, value in tensors.items()}


def _renamed(name: str, prefixes: Mapping[str, str], parts: Mapping[str, str]) -> str:
    for before, after in prefixes.items():
        if name.startswith(before) if before.endswith(".") else name == before:
            name = after + name[len(before) :]
            break
    for before, after in parts.items():
        name = name.replace(before, after)
    return name


def under(tensors: Mapping[str, torch.Tensor], *prefixes: str, cut: bool = False) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with one of the prefixes, which ``cut`` takes off."""
    return {
        name[len(prefix) :] if cut else name: value for name, value in tensors.items() for prefix in prefixes if name.startswith(prefix)
    }


def assemble(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    name: str,
    **options: bool,
) -> PreTrainedModel:
    """A transformers model of these weights, all of them and no others, frozen; ``options`` go to its constructor.

    ValueError names the first tensor that is missing, unknown, of another shape or not finite.
    """
    with torch.device("meta"):
        expected = {key: value.shape for key, value in kind(config, **options).state_dict().items()}
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors:
            raise ValueError(f"The weights of {name} lack {key!r}.")
        if key not in expected:
            raise ValueError(f"The weights of {name} contain {key[:100]!r}, which its architecture does not have.")
        if tensors[key].shape != expected[key]:
            found, wanted = tuple(tensors[key].shape), tuple(expected[key])
            raise ValueError(f"The weights of {name} have {key!r} of shape {found} instead of {wanted}.")
        if not torch.isfinite(tensors[key]).all():
            raise ValueError(f"The weights of {name} are not finite in {key!r}.")
    model = kind.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=dtype, **options)
    return model.eval().requires_grad_(False)
