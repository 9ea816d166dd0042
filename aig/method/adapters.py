"""Base and tuned model over one set of base weights: a LoRA switched on and off, or a second denoiser.

``fused`` makes that second denoiser out of a LoRA: W + scale * alpha/rank * B @ A, faster than peft layers and safe to
share between threads, at the price of a copy of the weights that it changes. ``switched`` keeps the LoRA beside the one
set of weights. LoRA files are in the format of diffusers' ``save_lora_weights``; ``aig.published.loras`` reads the others.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from aig.method.supported import plain, unhooked

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

MAX_STRENGTH = 10.0  # largest |scale * alpha / rank| taken for a real LoRA
ADAPTER = "aig"  # name of the peft adapter of ``switched``


def denoiser(pipe: DiffusionPipeline) -> ModelMixin:
    """The module that predicts the noise: ``pipe.unet`` or ``pipe.transformer``. ValueError if there is neither."""
    module = next((part for name in ("unet", "transformer") if (part := getattr(pipe, name, None)) is not None), None)
    if module is None:
        raise ValueError(f"{type(pipe).__name__} has no denoiser: it needs a unet or a transformer")
    return module


def denoisers(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """All modules that predict noise, by name, the pipeline's own first: some have one for late steps, or a prior."""
    found = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    kinds = {name: type(plain(part)) for name, part in found.items()}
    places, others = ("diffusers.models.unets", "diffusers.models.transformers"), ("MotionAdapter", "T5FilmDecoder")
    several = {name for name, kind in kinds.items() if kind.__module__.startswith(places) and kind.__name__ not in others}
    main = denoiser(pipe)
    return {name: part for name, part in found.items() if part is main} | {name: found[name] for name in found if name in several}


def pair(base: nn.Module, tuned: Callable | None = None) -> tuple[Callable, Callable]:
    """The base and the tuned model as two functions with the signature of ``base.forward``, as it is at this moment.

    With ``tuned`` they are the two modules as they stand; without it, ``base`` with its LoRA off and on, every layer's
    state returning after each call. Raises ValueError when there is no LoRA, or it is fused into the weights.
    """
    forward = base.forward
    if tuned is not None:
        return forward, tuned
    layers = lora_layers(base)
    if not layers:
        raise ValueError("no LoRA is loaded in the pipeline's denoiser: load one, or give the tuned denoiser")
    if any(layer.merged for layer in layers):
        raise ValueError("the pipeline's LoRA is fused into the base weights: call unfuse_lora() first")

    def switched(on: bool) -> Callable:
        def call(*args, **kwargs):
            with _lora(layers, on):
                return forward(*args, **kwargs)

        return call

    return switched(False), switched(True)


def lora_layers(module: nn.Module) -> list[BaseTunerLayer]:
    """The peft layers of a module, none when no adapter is attached."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def fused(denoiser: nn.Module, lora: str | Path | Mapping[str, Tensor], scale: float = 1.0) -> nn.Module:
    """A copy of the denoiser with a LoRA fused into its weights; the denoiser itself stays as it is.

    lora: a safetensors file or its tensors. scale: 0 for the base, 1 as trained, negative turns away from the tuning.
    Raises ValueError when the file is not a plain LoRA of this denoiser or holds values that cannot be right.
    """
    denoiser = unhooked(plain(denoiser))
    new = {}
    for name, increment in _increments(denoiser, lora, scale):
        weight = denoiser.get_parameter(f"{name}.weight")
        changed = (weight.float() + increment).to(weight.dtype)
        new[id(weight)] = nn.Parameter(_laid_out_like(weight, changed), requires_grad=False)
    # A deep copy that finds these in its memo takes them: the changed weights, and the others as they are, not copied.
    return copy.deepcopy(denoiser, {id(weight): weight for weight in denoiser.parameters()} | new)


def switched(denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> Callable[[float], Callable]:
    """scale -> the denoiser with a LoRA at that scale, over its one set of weights; equal scales give the same
    function.

    Attaches the LoRA as peft layers that are off except during such a call, so the denoiser stays the base model to
    everybody else; ``detach`` takes them off again. Not for two threads at once. Raises ValueError as ``increments``
    does.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check(unhooked(denoiser), tensors)  # all of it, before anything is attached
    pairs = _pairs(tensors)
    exactly = "|".join(re.escape(layer) for layer in pairs)  # peft matches a text as a whole, a list by its ends too
    config = LoraConfig(r=1, lora_alpha=1, target_modules=exactly)
    inject_adapter_in_model(config, denoiser, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    for name, (down, up) in pairs.items():
        layer: LoraLayer = denoiser.get_submodule(name)
        weight = layer.get_base_layer().weight
        for holder, value in ((layer.lora_A, down), (layer.lora_B, up)):
            holder[ADAPTER].weight = nn.Parameter(value.to(weight.device, weight.dtype), requires_grad=False)
        layer.scaling[ADAPTER], layer._disable_adapters = 1.0, True
    layers, forward = lora_layers(denoiser), denoiser.forward

    @functools.cache
    def at(scale: float) -> Callable:
        if not abs(scale) <= MAX_STRENGTH:
            raise ValueError(f"the LoRA scale must be from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, not {scale}")

        def call(*args, **kwargs):
            with _lora(layers, scale != 0):
                for layer in layers:
                    layer.scaling[ADAPTER] = scale
                return forward(*args, **kwargs)

        return call

    return at


def detach(denoiser: nn.Module) -> None:
    """Take the LoRA of ``switched`` off; the denoiser is as before, its weights the same objects."""
    for name, layer in [(name, layer) for name, layer in denoiser.named_modules() if hasattr(layer, "base_layer")]:
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, layer.base_layer)
    vars(denoiser).pop("peft_config", None)


def check(denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError as ``increments`` does, without keeping the increments."""
    for _ in _increments(denoiser, tensors, 1.0):
        pass


def changed_bytes(denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """What ``fused`` would add to the memory: the bytes of the weights that the LoRA changes."""
    weights = (denoiser.get_parameter(f"{layer}.weight") for layer in _pairs(tensors))
    return sum(weight.numel() * weight.element_size() for weight in weights)


def blend(base: nn.Module, tuned: nn.Module) -> Callable[[float], Callable]:
    """a -> the denoiser with the weights W_base + a * (W_tuned - W_base), which is the LoRA at scale a; exact at 0
    and 1.

    There is one further copy of what tuning changed, written in place whenever another a is called, so nothing is
    allocated at a step. Equal a give the same function.
    """
    own = dict(base.named_parameters())
    changed = {name: w for name, w in tuned.named_parameters() if not torch.equal(own[name], w)}
    pairs = {name: (own[name].detach(), w.detach()) for name, w in changed.items()}
    kept = {id(w): w for name, w in tuned.named_parameters() if name not in pairs}
    model = copy.deepcopy(tuned, kept).requires_grad_(False)
    moving = [(model.get_parameter(name), *ends) for name, ends in pairs.items()]
    now = None  # the a that the weights are at

    @functools.cache
    def at(a: float) -> Callable:
        def call(*args, **kwargs):
            nonlocal now
            if a != now:
                now = None  # in case that a failure leaves some weights at another a
                for weight, start, end in moving:
                    torch.lerp(start, end, a, out=weight)
                now = a
            return model(*args, **kwargs)

        return call

    return at


def increments(denoiser: nn.Module, lora: str | Path | Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """What a LoRA adds to each layer's weight: layer name -> scale * alpha/rank * B @ A, in its shape, float32.

    Checks everything that stock loading lets through in silence, and so raises ValueError for: another file format, an
    unknown tensor, half a pair, a layer or shape that the denoiser lacks, a rank above the layer's smaller side, a
    strength beyond MAX_STRENGTH, NaN and infinity.
    """
    return dict(_increments(denoiser, lora, scale))


@torch.no_grad()
def _increments(denoiser: nn.Module, lora: str | Path | Mapping[str, Tensor], scale: float) -> Iterator[tuple[str, Tensor]]:
    """The items of ``increments`` one after another, on each weight's device, so that they need not all fit at once."""
    if lora_layers(denoiser):
        raise ValueError("the denoiser already carries LoRA layers: call unload_lora_weights() first")
    if not math.isfinite(scale):
        raise ValueError(f"the LoRA scale must be a finite number, not {scale}")
    tensors, settings = _read(lora) if isinstance(lora, (str, Path)) else (lora, {})
    modules = dict(denoiser.named_modules())
    for layer, (down, up) in _pairs(tensors).items():
        weight = getattr(modules.get(layer), "weight", None)
        if not isinstance(modules.get(layer), (nn.Linear, nn.Conv2d)) or weight is None:
            raise ValueError(f"the LoRA tunes {layer!r}, which is not a linear or convolution layer of this denoiser")
        rank, smaller = len(down), min(len(weight), weight[0].numel())
        if down.shape[1:] != weight.shape[1:] or up.shape[:2] != (len(weight), rank) or up[0, 0].numel() != 1:
            raise ValueError(f"the LoRA's shapes {tuple(down.shape)} and {tuple(up.shape)} do not fit {layer!r} of {tuple(weight.shape)}")
        if not 1 <= rank <= smaller:
            raise ValueError(f"the LoRA has rank {rank} for {layer!r}, where 1 to {smaller} is possible")
        strength = scale * _alpha_over_rank(settings, layer, rank)
        if not abs(strength) <= MAX_STRENGTH:
            raise ValueError(f"scale * alpha / rank is {strength:g} for {layer!r}, at most {MAX_STRENGTH:g} is sane")
        increment = strength * (_matrix(up, weight) @ _matrix(down, weight))
        if not torch.isfinite(increment).all():
            raise ValueError(f"the LoRA holds NaN or infinite values for {layer!r}")
        yield layer, increment.view(weight.shape)


def _matrix(half: Tensor, weight: Tensor) -> Tensor:
    """A LoRA's half as a matrix in float32, where the weight is."""
    return half.to(weight.device).flatten(1).float()


def _laid_out_like(weight: Tensor, changed: Tensor) -> Tensor:
    """The changed weight with the strides of the old one (channels last stays so)."""
    return torch.empty_like(weight, requires_grad=False).copy_(changed)


@contextmanager
def _lora(layers: list[BaseTunerLayer], on: bool) -> Generator[None]:
    """LoRA layers on or off for a while. peft's enable_adapters would also change which parameters train."""
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = not on
    try:
        yield
    finally:
        for layer, was in zip(layers, before):
            layer._disable_adapters = was


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a safetensors file, and the settings (rank, alpha, ...) that diffusers may keep beside them."""
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{Path(path).name!r} is not a .safetensors file, the only format that is read")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no dict
            settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{Path(path).name!r} cannot be read as safetensors: {reason}") from error
    return tensors, settings if isinstance(settings, dict) else {}


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name -> (A, B): (rank, in, ...) and (out, rank, ...)."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        layer, _, half = name.removesuffix(".weight").rpartition(".")
        if part not in ("unet", "transformer") or half not in ("lora_A", "lora_B") or not name.endswith(".weight"):
            raise ValueError(f"the LoRA holds {key!r}, where only lora_A.weight and lora_B.weight of unet. or transformer. layers are read")
        if tensor.ndim < 2 or 0 in tensor.shape or not tensor.is_floating_point():
            raise ValueError(f"the LoRA's {key!r} is not a matrix of real numbers")
        halves.setdefault(layer, {})[half] = tensor
    if not halves:
        raise ValueError("the LoRA holds no tensors")
    if lonely := [layer for layer, pair in halves.items() if len(pair) != 2]:
        raise ValueError(f"the LoRA has only one of lora_A and lora_B for {lonely[0]!r}")
    return {layer: (pair["lora_A"], pair["lora_B"]) for layer, pair in halves.items()}


def _alpha_over_rank(settings: dict, layer: str, rank: int) -> float:
    """alpha/rank by the file's own settings, which stock loading obeys too; 1 when it has none."""
    settings = {key.partition(".")[2]: value for key, value in settings.items()}  # without the "unet." in front
    alpha = settings.get("lora_alpha", rank)
    pattern = settings.get("alpha_pattern")
    for name, value in pattern.items() if isinstance(pattern, dict) else ():
        if not re.fullmatch(r"[\w.]+", name):  # peft reads regular expressions, which no stranger should bring
            raise ValueError(f"the LoRA's alpha_pattern {name[:80]!r} is not a layer name")
        if f".{layer}".endswith(f".{name}"):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ValueError(f"the LoRA's alpha {repr(alpha)[:80]} is not a number")
    try:
        alpha = float(alpha)
    except OverflowError as error:  # a whole number of hundreds of digits
        raise ValueError("the LoRA's alpha is beyond all numbers that are computed with") from error
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
