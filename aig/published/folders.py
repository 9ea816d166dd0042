"""A model's folder, written by a stranger: what decides which code runs is checked against lists before any of it is used.

The pipeline's and the components' classes, by name; that no file asks for code of its own or lies elsewhere; that weights
are safetensors. Nothing is loaded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from aig.published.presets import PIPELINES

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast")
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "Gemma2Model")
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
)  # fmt: skip
TRANSFORMERS = ("SD3Transformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel")
CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {  # component without its number -> library, classes
        "tokenizer": ("transformers", TOKENIZERS),
        "text_encoder": ("transformers", ENCODERS),
        "unet": ("diffusers", ("UNet2DConditionModel",)),
        "transformer": ("diffusers", TRANSFORMERS),
        "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")),
        "scheduler": ("diffusers", SCHEDULERS),
    }
)
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
MAX_JSON = 64 * 2**20  # bytes; the largest tokenizer in use has about half of it
MAX_LAYERS = 512  # of a declared network; building more takes minutes before the weights could disagree
MAX_NUMBER = 1_000_000  # largest whole number of a configuration: vocabularies have 256,000
MAX_POSITIONS = 512  # side of a table of positions, which is computed before the weights are read
_CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config", "_module", "__reduce__")
_FILE_KEYS = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "chat_template_file")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?P<variant>\.\w+)?(?:-\d{5}-of-\d{5}(?:\.\w+)?)?\.safetensors")


def check(folder: Path, pipeline: str) -> dict[str, str]:
    """The components of a pipeline's folder and their classes; nothing is loaded. ValueError names what is not allowed."""
    if pipeline not in PIPELINES:
        raise ValueError(f"Unknown pipeline class {pipeline!r}; choose one of: {', '.join(PIPELINES)}.")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"The folder {folder.name!r} is not a diffusers pipeline: it has no model_index.json.")
    check_inside(folder / "model_index.json", folder)
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != pipeline:
        raise ValueError(f"model_index.json names the pipeline {short(index.get('_class_name'))}, where {pipeline} is expected.")
    parts, absent = {}, set()
    for name, value in index.items():
        if name.startswith("_") or name in NOT_LOADED or not isinstance(value, list):
            continue  # settings of the pipeline, such as requires_safety_checker
        if value == [None, None] and role(name) in ("text_encoder", "tokenizer"):
            absent.add(name)  # a model may come without its largest encoder
            continue
        if role(name) not in CLASSES or name not in accepted(pipeline):
            raise ValueError(f"model_index.json names the component {short(name)}, which {pipeline} does not have.")
        library, classes = CLASSES[role(name)]
        if len(value) != 2 or value[0] != library or value[1] not in classes:
            raise ValueError(f"model_index.json wants {short(value)} as {name}, allowed are {library}: {', '.join(classes)}.")
        parts[name] = value[1]
    if missing := sorted(accepted(pipeline).difference(NOT_LOADED, parts, absent)):
        raise ValueError(f"model_index.json lacks the component {missing[0]!r}, which {pipeline} needs.")
    for name in parts:
        check_component(folder, name)
    return parts


def check_component(folder: Path, name: str) -> None:
    """One component's files: all inside the folder, sane configurations, weights only as whole safetensors."""
    part = folder / name if name else folder
    if not part.is_dir():
        raise ValueError(f"The folder {folder.name!r} lacks {name}/, which its model_index.json names.")
    check_inside(part, folder)
    for path in sorted(part.iterdir()):
        check_inside(path, folder)
        if path.name.endswith(".index.json"):
            _check_index(path)
        elif path.suffix == ".json":
            _check_settings(read_json(path), path)
        elif path.suffix == ".safetensors":
            _check_weights(path)
    if role(name) in ("tokenizer", "scheduler"):
        return
    if not (part / "config.json").is_file():
        raise ValueError(f"{_shown(part, folder)} has no config.json.")
    if not any(path.suffix == ".safetensors" for path in part.iterdir()):
        raise ValueError(f"{_shown(part, folder)} has no .safetensors weights; other formats can hold code and are not read.")


def variant(part: Path) -> str | None:
    """ "fp16" when a component's only weights are of that variant."""
    found = {weights["variant"] for path in part.iterdir() if (weights := _WEIGHTS.fullmatch(path.name))}
    return "fp16" if found == {".fp16"} else None


def accepted(pipeline: str) -> set[str]:
    """The components that a pipeline class takes."""
    import diffusers

    kind = getattr(diffusers, pipeline)
    return set(kind._get_signature_keys(kind)[0])


def role(name: str) -> str:
    """text_encoder_2 -> text_encoder."""
    return re.sub(r"_[23]$", "", name)


def check_inside(path: Path, folder: Path) -> None:
    """No symbolic link that leads out, no device, pipe or socket."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{_shown(path, folder)} is a link that leads out of the model's folder.")
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"{_shown(path, folder)} is neither a file nor a folder.")


def read_json(path: Path) -> dict:
    """A JSON object of bounded size and depth whose keys are all different."""
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path.parent.name}/{path.name} has {size:,} bytes, at most {MAX_JSON:,} are read.")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read as JSON: {reason(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object.")
    return content


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{short(next(name for name in names if names.count(name) > 1))} stands there twice")
    return found


def _check_settings(content: dict, path: Path) -> None:
    """Nothing that asks for code or another place, and no number that would build something absurd."""
    where = f"{path.parent.name}/{path.name}"
    if path.name == "tokenizer.json":  # read by the Rust library alone; its vocabulary's words may have any name
        return
    for key in _CODE_KEYS:
        if content.get(key):
            raise ValueError(f"{where} asks for {key} = {short(content[key])}: models with code of their own are not loaded.")
    for key in _FILE_KEYS:
        if content.get(key):
            raise ValueError(f"{where} names another file, {key} = {short(content[key])}: a model's files must lie in its folder.")
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
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{path.parent.name}/{path.name} has no weight_map.")
    for name in set(map(str, shards.values())):
        if not _WEIGHTS.fullmatch(name):
            raise ValueError(f"{path.parent.name}/{path.name} names the weights {short(name)}, not a .safetensors file beside it.")
        if not (path.parent / name).is_file():
            raise ValueError(f"{path.parent.name}/{path.name} names the weights {short(name)}, which are missing.")


def _check_weights(path: Path) -> None:
    """A whole safetensors file: the library checks its header, offsets and length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read as safetensors: {reason(error)}.") from error


def reason(error: Exception) -> str:
    """The first line of an error's message, short and without this machine's paths."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"(/[\w.@+-]+){2,}", "...", line)[:200].rstrip(". ") or type(error).__name__


def short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _shown(path: Path, folder: Path) -> str:
    return f"{folder.name}/{path.relative_to(folder)}" if path != folder else folder.name
