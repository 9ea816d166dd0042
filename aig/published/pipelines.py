"""Loading published pipelines from a checked local folder, and the tuned weights that go with them.

Each component is loaded with the stock loader, and what that lets through in silence is checked after: weights that are
missing, of another shape, NaN.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aig.method import adapters
from aig.method.budget import cuda_free
from aig.published import folders
from aig.published.folders import short
from aig.published.presets import Tuned

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


def load(folder: Path, pipeline: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> DiffusionPipeline:
    """A stock pipeline from a folder, on the device, ready for sampling.

    pipeline: its class, of PIPELINES. dtype: bfloat16 on CUDA and float32 elsewhere by default. UNets and
    autoencoders get channels-last weights. Raises ValueError with one sentence for anything that is not such a model,
    and then leaves nothing of it in memory.
    """
    parts = folders.check(folder, pipeline)
    import diffusers
    import transformers

    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    loaded: dict[str, object] = dict.fromkeys(folders.accepted(pipeline).difference(parts))
    try:
        for name, kind in parts.items():
            library = {"diffusers": diffusers, "transformers": transformers}[folders.CLASSES[folders.role(name)][0]]
            loaded[name] = _component(getattr(library, kind), folder, name, dtype)
        pipe = _assembled(getattr(diffusers, pipeline), folder, loaded)
        for part in (getattr(pipe, "unet", None), pipe.vae):
            if part is not None:
                part.to(memory_format=torch.channels_last)
        pipe.to(device)
    except BaseException:
        release(*loaded.values())  # the traceback keeps them alive otherwise
        raise
    pipe.set_progress_bar_config(disable=True)
    return pipe


def second(pipe: DiffusionPipeline, folder: Path, subfolder: str = "") -> ModelMixin:
    """A whole second denoiser for a pipeline, of the same class and shapes, beside the base's own.

    Raises ValueError with one sentence when it is of another class or shape, incomplete, or holds NaN.
    """
    base = adapters.denoiser(pipe)
    folders.check_component(folder, subfolder)
    part = folder / subfolder
    settings = folders.read_json(part / "config.json")
    if settings.get("_class_name") != type(base).__name__:
        theirs, ours = short(settings.get("_class_name")), type(base).__name__
        raise ValueError(f"The tuned denoiser is a {theirs}, the base model's is a {ours}.")
    for key in ("sample_size", "_name_or_path", "_diffusers_version", "_class_name"):  # may differ without any effect
        settings.pop(key, None)
    for key, value in settings.items():
        own = base.config.get(key, value)
        if _plain(own) != _plain(value):
            raise ValueError(f"The tuned denoiser has {key} = {short(value)}, the base model {short(own)}: they cannot be mixed.")
    weight = next(base.parameters())
    tuned = None
    try:
        tuned = _component(type(base), folder, subfolder, weight.dtype)
        theirs = {name: tensor.shape for name, tensor in tuned.state_dict().items()}
        own = {name: tensor.shape for name, tensor in base.state_dict().items()}
        if different := sorted(name for name in theirs.keys() | own.keys() if theirs.get(name) != own.get(name)):
            raise ValueError(f"The tuned denoiser's {different[0]!r} does not have the base model's shape.")
        if base is getattr(pipe, "unet", None):
            tuned.to(memory_format=torch.channels_last)
        return tuned.to(weight.device)
    except BaseException:
        release(tuned)
        raise


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Tuned weights ready for use: ``at(scale)`` is the denoiser tuned that far, 0 the base and 1 as published."""

    at: Callable[[float], Callable]
    mode: str  # of MODES
    bytes: int  # of memory beside the base model's
    holds: tuple[nn.Module, ...]  # what ``release`` must free with the model


MODES = ("fused", "switched", "denoiser")
GRAPHS = 64  # of a kind of block: for its widths, for one row and for more, with a LoRA and without


def tuned(pipe: DiffusionPipeline, source: Tuned, folder: Path, *, mode: str | None = None, work_bytes: int = 0) -> Tuning:
    """The tuned weights of a preset, from their folder, attached to a loaded pipeline.

    A LoRA becomes a fused twin when the copy of what it changes fits beside ``work_bytes``, what a step itself needs,
    and else is switched over the one set of weights; mode forces either. Equal scales give the same function. Raises
    ValueError with one sentence and leaves the pipeline as it was when the weights cannot be right.
    """
    base = adapters.denoiser(pipe)
    if source.kind == "denoiser":
        twin = second(pipe, folder, source.subfolder)
        return Tuning(at=_blended(base, twin), mode="denoiser", bytes=_bytes(twin), holds=(twin,))
    from aig.published import loras

    path = folder / source.subfolder / source.weight_name
    if not path.is_file():
        raise ValueError(f"The folder {folder.name!r} has no file {source.weight_name!r}.")
    folders.check_inside(path, folder)
    tensors = loras.read(path, pipe)
    adapters.check(base, tensors)
    extra = adapters.changed_bytes(base, tensors)
    mode = mode or choose(free_bytes(next(base.parameters()).device), 2 * extra, work_bytes)  # LoRA scales in between take a second copy
    if mode not in ("fused", "switched"):
        raise ValueError(f"Unknown mode {mode!r} for a LoRA; choose fused or switched.")
    if mode == "switched":
        size = sum(tensor.numel() for tensor in tensors.values()) * next(base.parameters()).element_size()
        return Tuning(at=adapters.switched(base, tensors), mode=mode, bytes=size, holds=())
    twin = adapters.fused(base, tensors)
    return Tuning(at=_blended(base, twin), mode=mode, bytes=extra, holds=(twin,))


def compile_blocks(*denoisers: nn.Module, backend: str | Callable = "inductor") -> None:
    """Compile the attention blocks of denoisers in place, when they are final: a copy of a compiled one is not compiled.

    The blocks and not the whole, whose ``forward`` is another one during a run. Those of equal shapes share a graph, the
    twin's with the base's; a graph takes any number of rows above one, and a LoRA's scale as an input. backend: of torch.compile.
    """
    # Newer versions of torch take the limit here alone, older ones have 8, and compute what exceeds them uncompiled.
    limit = {"recompile_limit": GRAPHS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    for denoiser in denoisers:
        for name, blocks in denoiser.named_modules():
            if name.endswith("transformer_blocks"):  # so named in every family, FLUX's single_transformer_blocks too
                for block in blocks:
                    block.compile(dynamic=True, backend=backend, **limit)


def choose(free: int, twin: int, work: int) -> str:
    """ "fused" when a twin's bytes fit into the free ones beside a step's own work, else "switched"."""
    return "fused" if twin + work <= free else "switched"


def free_bytes(device: str | torch.device) -> int:
    """Memory that can still be taken: of the GPU, unused cache included, or of this machine or container."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(cuda_free(device))
    free = math.inf
    known = Path("/proc/meminfo")
    if known.is_file() and (available := re.search(r"MemAvailable:\s+(\d+) kB", known.read_text())):
        free = int(available[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():  # a container's own limit
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return 0 if math.isinf(free) else max(0, int(free))


def release(*parts: Any) -> None:
    """Free the memory of pipelines and modules, also where something still refers to them; they cannot be used after.

    Weights that a module outside shares stay with it. None and parts without weights are passed over.
    """
    for part in parts:
        if hasattr(part, "components"):
            release(*part.components.values())
        elif isinstance(part, nn.Module):
            part.to("meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":  # glibc keeps freed pages of small tensors for later, which looks like a leak
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _blended(base: nn.Module, twin: nn.Module) -> Callable[[float], Callable]:
    """scale -> the denoiser tuned that far; the weights in between take memory only once they are asked for."""
    between: list[Callable[[float], Callable]] = []

    def at(scale: float) -> Callable:
        if scale == 1:
            return twin
        if not abs(scale) <= adapters.MAX_STRENGTH:
            raise ValueError(f"The scale must be from -{adapters.MAX_STRENGTH:g} to {adapters.MAX_STRENGTH:g}, not {scale}.")
        if not between:
            between.append(adapters.blend(base, twin))
        return between[0](scale)

    return at


def _component(kind: Any, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """One component by its stock loader, complete and finite."""
    import diffusers
    import transformers

    options: dict[str, Any] = {"subfolder": name, "local_files_only": True}
    if issubclass(kind, diffusers.ModelMixin) or issubclass(kind, transformers.PreTrainedModel):
        options |= {"use_safetensors": True, "variant": folders.variant(folder / name), "dtype": dtype, "output_loading_info": True}
    else:
        options |= {} if issubclass(kind, diffusers.SchedulerMixin) else {"trust_remote_code": False}
    try:
        made = kind.from_pretrained(str(folder), **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the loaders raise whatever a broken file makes them stumble over
        raise ValueError(f"The {name or 'model'} of {folder.name!r} cannot be loaded: {folders.reason(error)}.") from error
    if not isinstance(made, tuple):
        return made
    module, info = made
    wrong = None
    if info["missing_keys"]:
        wrong = f"lacks weights, among them {sorted(info['missing_keys'])[0]!r}"
    elif info["mismatched_keys"]:
        first = short(sorted(info["mismatched_keys"])[0])
        wrong = f"has weights of another shape than its config.json says, among them {first}"
    elif bad := next((key for key, weight in module.named_parameters() if not torch.isfinite(weight).all()), None):
        wrong = f"holds NaN or infinite weights in {bad!r}"
    if wrong:
        release(module)
        raise ValueError(f"The {name or 'model'} of {folder.name!r} {wrong}.")
    return module.eval().requires_grad_(False)


def _assembled(kind: type[DiffusionPipeline], folder: Path, loaded: Mapping[str, Any]) -> DiffusionPipeline:
    """The pipeline around its loaded components; stock assembly reads the pipeline's own settings."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **loaded)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"The pipeline of {folder.name!r} cannot be put together: {folders.reason(error)}.") from error


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _plain(value: object) -> object:
    """Tuples as lists: JSON has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
