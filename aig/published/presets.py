"""Presets: which published models the app offers, read from the TOML files in ``assets/presets``. A file adds a preset.

Nothing is downloaded or imported here: a preset says what would be fetched (``aig.published.hub``) and loaded
(``aig.published.pipelines``).
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

FOLDER = Path(__file__).parents[2] / "assets" / "presets"
PIPELINES = (  # stock text-to-image pipelines of diffusers that AIG is tested on
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
)
WEIGHTS = ("lora", "denoiser")
REWARDS = ("pickscore", "hpsv2", "imagereward", "aesthetics", "clip")
FEATURES = ("dinov2", "clip")
MAX_BYTES = 64 * 1024  # of a preset file


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Weights tuned on a reward: a LoRA file, or a whole second denoiser in a subfolder."""

    name: str
    reward: str  # what they were tuned on: a name of REWARDS, or words
    kind: str  # of WEIGHTS
    repo: str  # "owner/name" on the Hub, or "./folder" below the operator's root
    revision: str = "main"
    weight_name: str = ""  # a LoRA's file
    subfolder: str = ""
    licence: str
    download: float | None = None  # GB; the Hub is asked before anything is fetched
    source: str  # paper, arXiv number

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which can never change."""
        return bool(COMMIT.fullmatch(self.revision))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A base model and the tuned weights that go with it."""

    name: str  # of the file
    title: str
    repo: str
    revision: str = "main"
    variant: str = ""  # "fp16" where the repository has half-size files
    pipeline: str  # of PIPELINES
    licence: str
    gated: bool  # whether the Hub asks people to accept terms first
    download: float  # GB, by the sizes of the files
    memory: float  # GB of weights in 16 bits with one fused twin of the denoiser, activations not counted
    size: int  # pixels of an image's side
    steps: int
    guidance: float
    closed: bool  # the schedule ends at 1, for few-step models
    prediction: str  # what the denoiser predicts, in words
    rewards: tuple[str, ...]  # of REWARDS
    held_out: str  # the reward that judges what no tuning saw
    features: str  # of FEATURES, for diversity
    tuned: tuple[Tuned, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which can never change."""
        return bool(COMMIT.fullmatch(self.revision))


Table = TypeVar("Table", Preset, Tuned)

COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}(/[A-Za-z0-9][\w.-]{0,99}){0,3}", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_][\w .+-]{0,127}", re.ASCII)
_CHOICES = MappingProxyType(
    {
        "pipeline": PIPELINES,
        "kind": WEIGHTS,
        "rewards": REWARDS,
        "held_out": REWARDS,
        "features": FEATURES,
        "variant": ("", "fp16"),
    }
)
_RANGES = MappingProxyType({"download": (0, 1000), "memory": (0, 1000), "size": (64, 4096), "steps": (1, 100), "guidance": (0, 30)})
_WORDS = MappingProxyType({str: "text", bool: "true or false", int: "a whole number", float: "a number"})


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """The presets of a folder, alphabetically."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def load(name: str, folder: Path = FOLDER) -> Preset:
    """Read a preset by its name. ValueError names the choices, or the file and the key that is wrong."""
    if name not in names(folder):
        raise ValueError(f"Unknown preset {name!r}; choose one of: {', '.join(names(folder))}.")
    content = (folder / f"{name}.toml").read_bytes()
    if len(content) > MAX_BYTES:
        raise ValueError(f"The preset {name}.toml has {len(content):,} bytes, at most {MAX_BYTES:,} are read.")
    try:
        return parse(content.decode(), name)
    except UnicodeDecodeError as error:
        raise ValueError(f"The preset {name}.toml is not UTF-8 text: {error}.") from error


def parse(text: str, name: str) -> Preset:
    """The preset that a TOML text describes; ``name`` is the file's, for messages. ValueError names file, key and
    choices."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"The preset {name}.toml is not valid TOML: {error}.") from error
    entries = table.pop("tuned", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"The preset {name}.toml: tuned must be a list of [[tuned]] tables.")
    if "name" in table:
        raise ValueError(f"The preset {name}.toml: the key 'name' is unknown, the file's own name is used.")
    tuned = tuple(_read(Tuned, entry, f"{name}.toml, tuned entry {i + 1}") for i, entry in enumerate(entries))
    if doubled := {entry.name for entry in tuned if [other.name for other in tuned].count(entry.name) > 1}:
        raise ValueError(f"The preset {name}.toml has two tuned entries named {min(doubled)!r}.")
    return replace(_read(Preset, {**table, "name": name}, f"{name}.toml"), tuned=tuned)


def own(
    *,
    pipeline: str,
    base: str,
    tuned: str,
    kind: str,
    base_revision: str = "main",
    revision: str = "main",
    weight_name: str = "",
    subfolder: str = "",
) -> Preset:
    """A preset from the "your own" form: ids are ``owner/name`` on the Hub or ``./folder`` below the operator's root.

    Image size, steps, guidance and the rest are those of the first preset with the same pipeline class. ValueError says
    which field is wrong and why.
    """
    _check(pipeline, "pipeline", "your model")
    alike = [preset for preset in map(load, names()) if preset.pipeline == pipeline]
    entry = {
        "name": "your own",
        "reward": "not stated",
        "kind": kind,
        "repo": tuned,
        "revision": revision,
        "weight_name": weight_name,
        "subfolder": subfolder,
        "licence": "not stated",
        "source": "your own",
    }
    added = _read(Tuned, entry, "your tuned weights")
    model = {
        "name": "own",
        "title": base,
        "repo": base,
        "revision": base_revision,
        "pipeline": pipeline,
        "licence": "not stated",
        "gated": False,
        "download": 0.0,
        "memory": 0.0,
        "size": 1024,
        "steps": 25,
        "guidance": 5.0,
        "closed": False,
        "prediction": "as the model's scheduler says",
        "rewards": ["pickscore", "clip"],
        "held_out": "clip",
        "features": "dinov2",
    }
    if alike:
        kept = ("size", "steps", "guidance", "closed", "prediction", "rewards", "held_out", "features")
        model |= {key: getattr(alike[0], key) for key in kept}
        model["rewards"] = list(alike[0].rewards)
    return replace(_read(Preset, model, "your model"), tuned=(added,))


def is_local(repo: str) -> bool:
    """Whether an id means a folder below the operator's root, not a repository on the Hub."""
    return repo.startswith("./")


def folder_of(repo: str, root: str | Path | None = None) -> Path:
    """The folder that a local id names, resolved. root: where models may lie, the environment's AIG_MODELS by default.

    ValueError when the operator allows no folder, when the id leaves the root (``..``, a symbolic link), or when
    there is no such folder.
    """
    _check_repo(repo, "the model")
    root = root or os.environ.get("AIG_MODELS")
    if not root:
        raise ValueError(f"Local folders such as {repo!r} are not allowed here; the operator can set AIG_MODELS to a folder.")
    top = Path(root).resolve()
    found = (top / repo[2:]).resolve()
    if not found.is_relative_to(top) or found == top:
        raise ValueError(f"The folder {repo!r} lies outside the folder that the operator allows.")
    if not found.is_dir():
        raise ValueError(f"There is no folder {repo!r} below the folder that the operator allows.")
    return found


def _read(kind: type[Table], table: dict, where: str) -> Table:
    """A dataclass from a TOML table whose keys and types are exactly the dataclass's own."""
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key != "tuned"}
    if unknown := sorted(set(table) - set(hints)):
        raise ValueError(f"In {where}: the key {unknown[0]!r} is unknown; choose among: {', '.join(hints)}.")
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    if missing := [key for key in needed if key not in table]:
        raise ValueError(f"In {where}: the key {missing[0]!r} is missing.")
    values = {key: _typed(value, hints[key], key, where) for key, value in table.items()}
    made = kind(**values)
    _check_repo(made.repo, where)
    if not _REVISION.fullmatch(made.revision) or ".." in made.revision:
        raise ValueError(f"In {where}: the revision {made.revision!r} is not a commit, branch or tag name.")
    if isinstance(made, Tuned):
        _check_place(made, where)
    return made


def _typed(value: Any, hint: Any, key: str, where: str) -> Any:
    """The value in its field's type, checked against the field's choices or range."""
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise ValueError(f"In {where}: {key} must be a list of texts, not {value!r}.")
        for item in value:
            _check(item, key, where)
        if len(set(value)) != len(value):
            raise ValueError(f"In {where}: {key} names something twice: {', '.join(value)}.")
        return tuple(value)
    plain = float if hint == float | None else hint
    fits = type(value) is plain or (plain is float and type(value) is int)
    if not fits:
        raise ValueError(f"In {where}: {key} must be {_WORDS[plain]}, not {value!r}.")
    if plain is str:
        if not value.isprintable() or len(value) > 300 or (not value and key not in ("weight_name", "subfolder", "variant")):
            raise ValueError(f"In {where}: {key} must be one line of 1 to 300 printable characters.")
        _check(value, key, where)
    if key in _RANGES:
        low, high = _RANGES[key]
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"In {where}: {key} must be from {low} to {high}, not {value}.")
        if key == "size" and value % 32:
            raise ValueError(f"In {where}: size must be a multiple of 32, not {value}.")
    return plain(value)


def _check(value: str, key: str, where: str) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        choices = ", ".join(choice for choice in _CHOICES[key] if choice)
        raise ValueError(f"In {where}: {key} {value!r} is unknown; choose among: {choices}.")


def _check_repo(repo: str, where: str) -> None:
    """owner/name, or ./folder/subfolder; no URL, no absolute path, nothing that climbs."""
    if is_local(repo):
        if all(_PART.fullmatch(part) for part in repo[2:].split("/")):
            return
    elif _REPO.fullmatch(repo) and ".." not in repo and "--" not in repo and not repo.endswith((".git", ".", "-")):
        return
    raise ValueError(f"In {where}: {repo!r} is not a model id; write owner/name for the Hub, or ./folder below the operator's.")


def _check_place(tuned: Tuned, where: str) -> None:
    """A LoRA is one safetensors file; a denoiser is a folder."""
    if tuned.subfolder and not all(_PART.fullmatch(part) for part in tuned.subfolder.split("/")):
        raise ValueError(f"In {where}: the subfolder {tuned.subfolder!r} is not a plain folder name.")
    if tuned.kind == "denoiser" and tuned.weight_name:
        raise ValueError(f"In {where}: a denoiser is named by its subfolder, weight_name {tuned.weight_name!r} is for a LoRA.")
    if tuned.kind == "lora" and not (_PART.fullmatch(tuned.weight_name) and tuned.weight_name.endswith(".safetensors")):
        raise ValueError(f"In {where}: weight_name {tuned.weight_name!r} is not the name of a .safetensors file.")
