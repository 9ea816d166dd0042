"""Loading published pipelines from a local folder, safely, and the tuned weights that go with them.

A model's folder was written by a stranger. Everything that decides which code runs is checked against lists before
any of it is used: the pipeline's and the components' classes, by name; that no file asks for code of its own or lies
elsewhere; that weights are safetensors. Then each component is loaded with the stock loader, and what that lets
through in silence is checked after: weights that are missing, of another shape, NaN.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from aig import adapters
from aig.budget import cuda_free
from aig.published.presets import PIPELINES, Tuned

TOKENIZERS = (
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
)
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "Gemma2Model")
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
)  # fmt: skip
TRANSFORMERS = ("SD3Transformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel")
CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = (
    MappingProxyType(  # component without its number -> library, classes
        {
            "tokenizer": ("transformers", TOKENIZERS),
            "text_encoder": ("transformers", ENCODERS),
            "unet": ("diffusers", ("UNet2DConditionModel",)),
            "transformer": ("diffusers", TRANSFORMERS),
            "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")),
            "scheduler": ("diffusers", SCHEDULERS),
        }
    )
)
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
MAX_JSON = 64 * 2**20  # bytes; the largest tokenizer in use has about half of it
MAX_LAYERS = 512  # of a declared network; building more takes minutes before the weights could disagree
MAX_NUMBER = 1_000_000  # largest whole number of a configuration: vocabularies have 256,000
MAX_POSITIONS = 512  # side of a table of positions, which is computed before the weights are read
_CODE_KEYS = (
    "auto_map",
    "custom_pipeline",
    "custom_pipelines",
    "trust_remote_code",
    "quantization_config",
    "_module",
    "__reduce__",
)
_FILE_KEYS = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "chat_template_file")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<variant>\.\w+)?(?:-\d{5}-of-\d{5}(?:\.\w+)?)?\.safetensors"
)


def load(
    folder: Path, pipeline: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> object:
    """A stock pipeline from a folder, on the device, ready for sampling.

    pipeline: its class, of PIPELINES. dtype: bfloat16 on CUDA and float32 elsewhere by default. UNets and
    autoencoders get channels-last weights. Raises ValueError with one sentence for anything that is not such a model,
    and then leaves nothing of it in memory.
    """
    parts = check(folder, pipeline)
    import diffusers
    import transformers

    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    loaded: dict[str, object] = dict.fromkeys(_accepted(pipeline).difference(parts))
    try:
        for name, kind in parts.items():
            library = {"diffusers": diffusers, "transformers": transformers}[CLASSES[_role(name)][0]]
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


def check(folder: Path, pipeline: str) -> dict[str, str]:
    """The components of a pipeline's folder and their classes; nothing is loaded. ValueError names what is not
    allowed."""
    if pipeline not in PIPELINES:
        raise ValueError(f"Unknown pipeline class {pipeline!r}; choose one of: {', '.join(PIPELINES)}.")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"The folder {folder.name!r} is not a diffusers pipeline: it has no model_index.json.")
    _check_inside(folder / "model_index.json", folder)
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != pipeline:
        raise ValueError(
            f"model_index.json names the pipeline {_short(index.get('_class_name'))}, where {pipeline} is expected."
        )
    parts, absent = {}, set()
    for name, value in index.items():
        if name.startswith("_") or name in NOT_LOADED or not isinstance(value, list):
            continue  # settings of the pipeline, such as requires_safety_checker
        if value == [None, None] and _role(name) in ("text_encoder", "tokenizer"):
            absent.add(name)  # a model may come without its largest encoder
            continue
        if _role(name) not in CLASSES or name not in _accepted(pipeline):
            raise ValueError(f"model_index.json names the component {_short(name)}, which {pipeline} does not have.")
        library, classes = CLASSES[_role(name)]
        if len(value) != 2 or value[0] != library or value[1] not in classes:
            raise ValueError(
                f"model_index.json wants {_short(value)} as {name}, allowed are {library}: {', '.join(classes)}."
            )
        parts[name] = value[1]
    if missing := sorted(_accepted(pipeline).difference(NOT_LOADED, parts, absent)):
        raise ValueError(f"model_index.json lacks the component {missing[0]!r}, which {pipeline} needs.")
    for name in parts:
        check_component(folder, name)
    return parts


def check_component(folder: Path, name: str) -> None:
    """One component's files: all inside the folder, sane configurations, weights only as whole safetensors."""
    part = folder / name if name else folder
    if not part.is_dir():
        raise ValueError(f"The folder {folder.name!r} lacks {name}/, which its model_index.json names.")
    _check_inside(part, folder)
    for path in sorted(part.iterdir()):
        _check_inside(path, folder)
        if path.name.endswith(".index.json"):
            _check_index(path)
        elif path.suffix == ".json":
            _check_settings(_read_json(path), path)
        elif path.suffix == ".safetensors":
            _check_weights(path)
    if _role(name) in ("tokenizer", "scheduler"):
        return
    if not (part / "config.json").is_file():
        raise ValueError(f"{_shown(part, folder)} has no config.json.")
    if not any(path.suffix == ".safetensors" for path in part.iterdir()):
        raise ValueError(
            f"{_shown(part, folder)} has no .safetensors weights; other formats can hold code and are not read."
        )


def second(pipe: object, folder: Path, subfolder: str = "") -> nn.Module:
    """A whole second denoiser for a pipeline, of the same class and shapes, beside the base's own.

    Raises ValueError with one sentence when it is of another class or shape, incomplete, or holds NaN.
    """
    base = adapters.denoiser(pipe)
    check_component(folder, subfolder)
    part = folder / subfolder
    settings = _read_json(part / "config.json")
    if settings.get("_class_name") != type(base).__name__:
        theirs, ours = _short(settings.get("_class_name")), type(base).__name__
        raise ValueError(f"The tuned denoiser is a {theirs}, the base model's is a {ours}.")
    for key in ("sample_size", "_name_or_path", "_diffusers_version", "_class_name"):  # may differ without any effect
        settings.pop(key, None)
    for key, value in settings.items():
        own = base.config.get(key, value)
        if _plain(own) != _plain(value):
            raise ValueError(
                f"The tuned denoiser has {key} = {_short(value)}, the base model {_short(own)}: they cannot be mixed."
            )
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


def tuned(pipe: object, source: Tuned, folder: Path, *, mode: str | None = None, work_bytes: int = 0) -> Tuning:
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
    _check_inside(path, folder)
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


def choose(free: int, twin: int, work: int) -> str:
    """ "fused" when a twin's bytes fit into the free ones beside a step's own work, else "switched"."""
    return "fused" if twin + work <= free else "switched"


def free_bytes(device: str | torch.device) -> int:
    """Memory that can still be taken: of the GPU, unused cache included, or of this machine or container."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(cuda_free(device))
    free = math.inf
    if Path("/proc/meminfo").is_file():
        free = int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():  # a container's own limit
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return 0 if math.isinf(free) else max(0, int(free))


def release(*parts: object) -> None:
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
            raise ValueError(
                f"The scale must be from -{adapters.MAX_STRENGTH:g} to {adapters.MAX_STRENGTH:g}, not {scale}."
            )
        if not between:
            between.append(adapters.blend(base, twin))
        return between[0](scale)

    return at


def _component(kind: type, folder: Path, name: str, dtype: torch.dtype) -> object:
    """One component by its stock loader, complete and finite."""
    import diffusers
    import transformers

    options = {"subfolder": name, "local_files_only": True}
    if issubclass(kind, diffusers.ModelMixin) or issubclass(kind, transformers.PreTrainedModel):
        options |= {
            "use_safetensors": True,
            "variant": _variant(folder / name),
            "dtype": dtype,
            "output_loading_info": True,
        }
    else:
        options |= {} if issubclass(kind, diffusers.SchedulerMixin) else {"trust_remote_code": False}
    try:
        made = kind.from_pretrained(str(folder), **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the loaders raise whatever a broken file makes them stumble over
        raise ValueError(f"The {name or 'model'} of {folder.name!r} cannot be loaded: {_reason(error)}.") from error
    if not isinstance(made, tuple):
        return made
    module, info = made
    wrong = None
    if info["missing_keys"]:
        wrong = f"lacks weights, among them {sorted(info['missing_keys'])[0]!r}"
    elif info["mismatched_keys"]:
        first = _short(sorted(info["mismatched_keys"])[0])
        wrong = f"has weights of another shape than its config.json says, among them {first}"
    elif bad := next((key for key, weight in module.named_parameters() if not torch.isfinite(weight).all()), None):
        wrong = f"holds NaN or infinite weights in {bad!r}"
    if wrong:
        release(module)
        raise ValueError(f"The {name or 'model'} of {folder.name!r} {wrong}.")
    return module.eval().requires_grad_(False)


def _assembled(kind: type, folder: Path, loaded: Mapping[str, object]) -> object:
    """The pipeline around its loaded components; stock assembly reads the pipeline's own settings."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **loaded)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"The pipeline of {folder.name!r} cannot be put together: {_reason(error)}.") from error


def _accepted(pipeline: str) -> set[str]:
    """The components that a pipeline class takes."""
    import diffusers

    kind = getattr(diffusers, pipeline)
    return set(kind._get_signature_keys(kind)[0])


def _role(name: str) -> str:
    """text_encoder_2 -> text_encoder."""
    return re.sub(r"_[23]$", "", name)


def _variant(part: Path) -> str | None:
    """ "fp16" when a component's only weights are of that variant."""
    found = {_WEIGHTS.fullmatch(path.name)["variant"] for path in part.iterdir() if _WEIGHTS.fullmatch(path.name)}
    return "fp16" if found == {".fp16"} else None


def _check_inside(path: Path, folder: Path) -> None:
    """No symbolic link that leads out, no device, pipe or socket."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{_shown(path, folder)} is a link that leads out of the model's folder.")
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"{_shown(path, folder)} is neither a file nor a folder.")


def _read_json(path: Path) -> dict:
    """A JSON object of bounded size and depth whose keys are all different."""
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path.parent.name}/{path.name} has {size:,} bytes, at most {MAX_JSON:,} are read.")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read as JSON: {_reason(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object.")
    return content


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{_short(next(name for name in names if names.count(name) > 1))} stands there twice")
    return found


def _check_settings(content: dict, path: Path) -> None:
    """Nothing that asks for code or another place, and no number that would build something absurd."""
    where = f"{path.parent.name}/{path.name}"
    if path.name == "tokenizer.json":  # read by the Rust library alone; its vocabulary's words may have any name
        return
    for key in _CODE_KEYS:
        if content.get(key):
            raise ValueError(
                f"{where} asks for {key} = {_short(content[key])}: models with code of their own are not loaded."
            )
    for key in _FILE_KEYS:
        if content.get(key):
            raise ValueError(
                f"{where} names another file, {key} = {_short(content[key])}: a model's files must lie in its folder."
            )
    if path.name in ("config.json", "scheduler_config.json"):
        for key, value in _numbers(content):
            layers = re.search(r"(layers|num_\w*blocks|num_hidden)", key) and "timesteps" not in key
            most = MAX_LAYERS if layers else MAX_POSITIONS if key == "pos_embed_max_size" else MAX_NUMBER
            if abs(value) > most:
                raise ValueError(f"{where} declares {key} = {value}, at most {most:,} is sane.")


def _numbers(content: object, key: str = "") -> list[tuple[str, int]]:
    """All whole numbers of a JSON value with the key they belong to."""
    if isinstance(content, dict):
        return [found for name, value in content.items() for found in _numbers(value, name)]
    if isinstance(content, list):
        return [found for value in content for found in _numbers(value, key)]
    return [(key, content)] if isinstance(content, int) and not isinstance(content, bool) else []


def _check_index(path: Path) -> None:
    """A shard index names safetensors files beside it."""
    shards = _read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{path.parent.name}/{path.name} has no weight_map.")
    for name in set(map(str, shards.values())):
        if not _WEIGHTS.fullmatch(name):
            raise ValueError(
                f"{path.parent.name}/{path.name} names the weights {_short(name)}, not a .safetensors file beside it."
            )
        if not (path.parent / name).is_file():
            raise ValueError(f"{path.parent.name}/{path.name} names the weights {_short(name)}, which are missing.")


def _check_weights(path: Path) -> None:
    """A whole safetensors file: the library checks its header, offsets and length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read as safetensors: {_reason(error)}.") from error


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _plain(value: object) -> object:
    """Tuples as lists: JSON has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _reason(error: Exception) -> str:
    """The first line of an error's message, short and without this machine's paths."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"(/[\w.@+-]+){2,}", "...", line)[:200].rstrip(". ") or type(error).__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _shown(path: Path, folder: Path) -> str:
    return f"{folder.name}/{path.relative_to(folder)}" if path != folder else folder.name
