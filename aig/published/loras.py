"""LoRA files as they are published, as one format: ``unet.LAYER.lora_A.weight`` and ``lora_B.weight``, alpha folded in.

Read are diffusers' newer and older formats, bare ones (``save_lora_adapter``), peft's folders (adapter_model.safetensors
with adapter_config.json), kohya's ``lora_unet_...`` and xlabs' ``processor``, with diffusers' names of layers or their
authors' (``aig.published.namings``). Every key of a file has a place in the denoiser, or the file is refused by that key:
stock loading drops or misplaces layers in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from aig.method import adapters
from aig.published import namings
from aig.published.folders import short

MAX_SETTINGS = 1_000_000  # bytes of an adapter_config.json
MAX_NAME, MAX_TENSORS = 500, 20_000  # characters of a key, and keys; published files have up to 120 and 5,000
MAX_RANK = 256  # of a layer that is narrower than that
MAX_NUMBER = 1e12  # of a rank or an alpha in settings; a larger one is not looked at
MAX_CHANGE = 1e4  # bound of what a LoRA may add to one number of the weights, which are around 1 and below
_PEFT = "base_model.model."
_HALF = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<new>A|B|down|up)(?:\.[\w-]+)?|[._]lora(?:_linear_layer)?(?P<number>\d?)\.(?P<old>down|up))\.weight"
)
_TEXT = re.compile(r"(?:base_model\.model\.)?(?:text_encoder|text_model\.|lora_te(?:\d_|_)|lora_text|te\d?\.|t5xxl|clip_[lg]\.)")
_OTHER_KINDS = (
    (r"\.dora_scale$|lora_magnitude_vector", "DoRA"),
    (r"\.hada_", "LoHa"),
    (r"\.lokr_", "LoKr"),
    (r"\.lora_mid\.", "Tucker LoCon"),
    (r"\.b?oft_|\boft_blocks", "OFT"),
    (r"\.(?:[ab][12])\.weight$", "GLoRA"),
    (r"\.on_input$", "IA3"),
    (r"(?:\.lora_[AB](?:\.\w+)?|\.base_layer)\.bias$|\.diff_b$|\.b_norm$", "a LoRA with a bias difference"),
    (r"\.diff$|\.set_weight$|\.w_norm$|\.reshape_weight$|modules_to_save", "a LoRA with a whole-weight difference"),
    (r"norm.*\.(?:scale|weight|bias)$", "a LoRA with weights of a norm"),
)
_PLAIN = {  # settings of peft and the values that leave a LoRA a plain one: B @ A added to the base's own weights
    "peft_type": ("LORA", None), "use_dora": (False, None), "bias": ("none", None), "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []), "layer_replication": (None,), "lora_bias": (False, None), "use_qalora": (False, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others, as PiSSA, change the base
    "use_bdlora": (False, None), "kasa_config": (None,), "monteclora_config": (None,), "velora_config": (None,),
    "arrow_config": (None,), "alora_invocation_tokens": (None,), "target_parameters": (None, []),
}  # fmt: skip
_ALPHAS = ("lora_alpha", "alpha_pattern", "use_rslora")
_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class _Layer(NamedTuple):
    """The keys of one layer in the file."""

    down: str
    up: str
    alpha: str | None


class _Settings(NamedTuple):
    """Alphas beside the tensors: for the file's own names of layers (peft's folders) or for diffusers'."""

    values: Mapping[str, object]
    own_names: bool


def read(path: Path, pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The tensors of a LoRA file for a pipeline's denoiser, alpha/rank folded into ``lora_B``.

    Raises ValueError with one sentence, which names the file's own key, for a file that is no safetensors, another kind
    of adapter (DoRA, LoHa, LoKr), an alpha that cannot be right, a key without a place in this denoiser and a shape that
    does not fit its place. AIG mixes the predictions of two denoisers at the same prompt, so a LoRA that also changes
    the prompt's encoding is refused whole: half of it would not be the model that was published.
    """
    denoiser = adapters.denoiser(pipe)
    part = "unet" if denoiser is getattr(pipe, "unet", None) else "transformer"
    tensors, metadata = adapters._read(path)
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"the LoRA holds {len(tensors)} tensors, {MAX_TENSORS} are possible")
    if long := next((key for key in tensors if len(key) > MAX_NAME), None):
        raise ValueError(f"the LoRA holds a key of {len(long)} characters, {_shown(long)}, which is no part of a LoRA")
    tensors = _effective(tensors)
    _check_keys(tensors)
    layers = _layers(tensors)
    settings = _settings(path, metadata, tensors)
    places = namings.places(denoiser)
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}  # layer -> the key that tunes it
    for name, layer in layers.items():
        place = places.get(namings.plain(name))
        if place is None:
            raise ValueError(f"the LoRA's {_shown(layer.down)} belongs to no linear or convolution layer of {type(denoiser).__name__}")
        weights = {target: denoiser.get_submodule(target).weight for target in place.layers}
        down, up = _fitted(tensors, layer, weights)
        up = namings.in_order(denoiser, place, up * _strength(tensors, layer, settings, name, place))
        for target, rows in zip(weights, up.split([len(weight) for weight in weights.values()])):
            if target in origin:
                raise ValueError(f"the LoRA tunes {target!r} twice, by {_shown(origin[target])} and {_shown(layer.down)}")
            origin[target] = layer.down
            found |= {f"{part}.{target}.lora_A.weight": down, f"{part}.{target}.lora_B.weight": rows.contiguous()}
    return found


def _effective(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those that change nothing, which some trainers write: differences of 0, and the text
    encoder's layers with an upper half of 0."""
    idle = {key for key, tensor in tensors.items() if re.search(r"\.diff(_b)?$", key) and _zero(tensor)}
    texts = {key: _layer_name(key) for key in tensors if _TEXT.match(key)}
    unmoved = {name for key, name in texts.items() if name and _is_up(_HALF.fullmatch(key)) and _zero(tensors[key])}
    return {key: tensor for key, tensor in tensors.items() if key not in idle and texts.get(key) not in unmoved}


def _layer_name(key: str) -> str | None:
    """The file's name of the layer that a half or an alpha belongs to; None for other keys."""
    if half := _HALF.fullmatch(key):
        return half["layer"] + (half["number"] or "")
    return re.sub(r"[._]lora(\d?)$", r"\1", key.removesuffix(".alpha")) if key.endswith(".alpha") else None


def _zero(tensor: Tensor) -> bool:
    return tensor.dtype in _REAL and not tensor.float().any()


def _is_up(half: re.Match | None) -> bool:
    return half is not None and (half["new"] or half["old"]) in ("B", "up")


def _shown(key: str) -> str:
    return short(key, 200)


def _check_keys(tensors: Mapping[str, Tensor]) -> None:
    """Only halves of a LoRA and their alphas, none of the text encoder."""
    if not tensors:
        raise ValueError("the LoRA holds no tensors that change anything")
    for key in tensors:
        for mark, kind in _OTHER_KINDS:
            if re.search(mark, key) and not _HALF.fullmatch(key):
                raise ValueError(f"the file is {kind}, by its {_shown(key)}; only plain LoRA can be mixed here")
    if texts := [key for key in tensors if _TEXT.match(key)]:
        raise ValueError(
            f"the LoRA also tunes the text encoder ({len(texts)} tensors, {_shown(texts[0])}), but AIG mixes denoisers that "
            "share a prompt: use a LoRA of the denoiser alone"
        )
    for key, tensor in tensors.items():
        if _HALF.fullmatch(key):
            if tensor.ndim < 2 or 0 in tensor.shape or tensor.dtype not in _REAL:
                raise ValueError(f"the LoRA's {_shown(key)} is not a matrix of real numbers")
        elif not key.endswith(".alpha"):
            raise ValueError(f"the LoRA holds {_shown(key)}, which is no part of a LoRA")


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, _Layer]:
    """The file's name of each layer and its keys; every key belongs to one."""
    found: dict[str, dict[str, str]] = {}
    for key in tensors:
        half = _HALF.fullmatch(key)
        role = "alpha" if half is None else "up" if _is_up(half) else "down"
        name = _layer_name(key)
        assert name is not None  # ``_check_keys`` lets no other key through
        other = found.setdefault(name, {}).setdefault(role, key)
        if other != key:
            raise ValueError(f"the LoRA tunes one layer twice, by {_shown(other)} and {_shown(key)}")
        if role == "alpha" and (tensors[key].numel() != 1 or tensors[key].is_complex()):
            raise ValueError(f"the LoRA's alpha {_shown(key)} is not one number")
    for keys in found.values():
        if keys.keys() == {"alpha"}:
            raise ValueError(f"the LoRA's alpha {_shown(keys['alpha'])} is not beside a LoRA layer")
        if not keys.keys() >= {"down", "up"}:
            raise ValueError(f"the LoRA has only one half of a layer, {_shown(keys.get('down') or keys['up'])}")
    return {name: _Layer(keys["down"], keys["up"], keys.get("alpha")) for name, keys in found.items()}


def _fitted(tensors: Mapping[str, Tensor], layer: _Layer, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The halves in the shapes that the weights of their place ask for, stacked from the top."""
    down, up = tensors[layer.down], tensors[layer.up].float()
    sizes, first = [len(weight) for weight in weights.values()], next(iter(weights))
    rank, inner = len(down), weights[first].shape[1:]
    if down.shape[1] != inner[0] or down[0].numel() != math.prod(inner):
        raise ValueError(f"the LoRA's {_shown(layer.down)} has the shape {_shape(down)}, but {first!r} takes {(rank, *inner)}")
    if up.shape[:2] != (sum(sizes), rank) or up[0, 0].numel() != 1:
        raise ValueError(f"the LoRA's {_shown(layer.up)} has the shape {_shape(up)}, but {first!r} takes {(sum(sizes), rank)}")
    smaller = min(*sizes, math.prod(inner))
    if rank > (most := smaller if len(sizes) > 1 else max(smaller, MAX_RANK)):
        raise ValueError(f"the LoRA has rank {rank} in {_shown(layer.down)}, where 1 to {most} is possible")
    for key in (layer.down, layer.up):
        if not torch.isfinite(tensors[key].float()).all():
            raise ValueError(f"the LoRA holds NaN or infinite values in {_shown(key)}")
    if (change := rank * float(down.float().abs().max()) * float(up.abs().max())) > MAX_CHANGE:
        raise ValueError(f"the LoRA's {_shown(layer.up)} can change weights by {change:g}, which cannot be right")
    if rank > smaller:
        down, up = _narrowed(down, up)
    return down.reshape(-1, *inner), up.reshape(sum(sizes), -1, *(1,) * (len(inner) - 1))


def _narrowed(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with the rank of its smaller side: trainers give the narrow layers the rank of the wide ones."""
    product = up.flatten(1) @ down.float().flatten(1)
    rows, columns = product.shape
    return (product, torch.eye(rows)) if rows < columns else (torch.eye(columns), product)


def _shape(tensor: Tensor) -> str:
    return short(tuple(tensor.shape))


def _strength(tensors: Mapping[str, Tensor], layer: _Layer, settings: _Settings, name: str, place: namings.Place) -> float:
    """alpha/rank of a layer, by its own tensor or by the settings."""
    rank = len(tensors[layer.down])
    if layer.alpha is None:
        known_as = name.removeprefix(_PEFT) if settings.own_names else place.layers[0]
        strength, key = adapters._alpha_over_rank(dict(settings.values), known_as, rank), layer.down
    else:
        strength, key = float(tensors[layer.alpha]) / rank, layer.alpha
    if not 0 < strength <= adapters.MAX_STRENGTH:  # NaN too
        raise ValueError(f"the LoRA's alpha / rank is {strength:g} for {_shown(key)}, above 0 to {adapters.MAX_STRENGTH:g} is sane")
    return strength


def _settings(path: Path, metadata: Mapping[str, object], tensors: Mapping[str, Tensor]) -> _Settings:
    """The alphas in the file's metadata, or in the adapter_config.json of a peft folder."""
    peft = next((key for key in tensors if key.startswith(_PEFT)), None)
    beside = path.parent / "adapter_config.json"
    if peft is not None and beside.is_file():
        source, values = beside.name, _config(beside)
    else:
        named = {re.sub(r"^(unet|transformer)\.", "", key): value for key, value in metadata.items()}
        source, values = "the file's metadata", {key: value for key, value in named.items() if "." not in key}
    for key, allowed in _PLAIN.items():
        if key in values and not any(values[key] is value or values[key] == value for value in allowed):
            raise ValueError(f"{source} asks for {key} = {short(values[key])}, only plain LoRA can be mixed here")
    alphas = {f"any.{key}": values[key] for key in _ALPHAS if key in values}
    own = next((key for key in tensors if key.endswith(".alpha")), None)
    if alphas and own is not None:
        raise ValueError(f"the LoRA has the alpha {_shown(own)} and another one in {source}")
    # Without settings or alphas a trainer with the authors' names means alpha = rank; peft's own default is another.
    if peft is not None and not alphas and own is None and not re.search(r"(double|single|joint)_blocks\.", peft):
        raise ValueError(f"the LoRA is in peft's format, by its {_shown(peft)}, which needs {beside.name} beside it for its alpha")
    return _Settings(alphas, source == beside.name)


def _config(path: Path) -> dict:
    """The content of an adapter_config.json of a LoRA."""
    try:
        content = json.loads(path.read_bytes()[: MAX_SETTINGS + 1]) if path.stat().st_size <= MAX_SETTINGS else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {type(error).__name__}") from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise ValueError(f"{path.name} does not describe a LoRA")
    for name in ("r", "lora_alpha"):
        number = content.get(name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= MAX_NUMBER:
            raise ValueError(f"{path.name} gives no number for {name}")
    return content
