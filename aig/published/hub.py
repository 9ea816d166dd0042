"""What the Hub holds of a model: which of its files would be downloaded, how large they are, and what keeps them from us.

Nothing is downloaded here; ``aig.published.downloads`` does it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aig.published.presets import COMMIT, Preset, Tuned, is_local

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

COMPONENTS = (  # folders of the stock text-to-image pipelines; the safety checker and its extractor are not loaded
    "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3",
    "unet", "transformer", "vae",
)  # fmt: skip
TEXTS = (".json", ".txt", ".model")  # configurations and tokenizers; never code, templates or pickles
MAX_TEXT = 64 * 2**20  # bytes of one such file; the largest tokenizer in use has about half of it
MAX_TOTAL = 200 * 10**9  # bytes of one model
RESERVE = 2 * 10**9  # bytes of the disk that downloads leave free
_PATH = re.compile(r"[\w][\w .+-]*(/[\w][\w .+-]*){0,4}", re.ASCII)

# Names that diffusers and transformers give to weights, their variants and shards, in the newer and the older order.
_STEM, _SHARD = r"(?:diffusion_pytorch_model|model)", r"-\d{5}-of-\d{5}"
_WEIGHTS = re.compile(rf"{_STEM}(?:\.(\w+))?(?:{_SHARD})?\.safetensors|{_STEM}{_SHARD}\.(\w+)\.safetensors")
_INDEX = re.compile(rf"{_STEM}\.safetensors\.index(?:\.(\w+))?\.json|{_STEM}\.safetensors\.(\w+)\.index\.json")


class Unavailable(ValueError):
    """A model cannot be had at the moment, or at all; the message is one line that says why and what can be done."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Files of a repository by name: what the app's own list of rewards and feature models says (``aig.published.scorers``)."""

    repo: str
    revision: str
    files: tuple[str, ...]


Source = Preset | Tuned | Listed


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a repository: its path, its size in bytes, and its checksum."""

    name: str
    size: int
    digest: str  # sha256 of a large file, else git's sha1 of a blob


@dataclass(frozen=True, kw_only=True)
class Download:
    """Exactly what would be downloaded, and where to."""

    repo: str
    revision: str  # as asked
    commit: str  # that it means now
    files: tuple[File, ...]
    folder: Path
    left: int  # bytes that are not on the disk yet

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def __str__(self) -> str:
        sizes = f"{_size(self.total)}, {_size(self.left)} to download"
        return f"{self.repo} at {self.commit[:8]}: {len(self.files)} files, {sizes}"


def store() -> Path:
    """Where downloads lie: AIG_STORE, or a folder of the Hub's cache."""
    if place := os.environ.get("AIG_STORE"):
        return Path(place)
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "aig"


def plan(
    source: Source, *, place: Path | None = None, endpoint: str | None = None, timeout: float = 10.0, most: int = MAX_TOTAL
) -> Download:
    """Ask the Hub which files a model needs: their sizes and checksums. Nothing is downloaded.

    endpoint: another server that speaks the Hub's API, HF_ENDPOINT by default. timeout: seconds for the answer. Raises
    Unavailable with one line for a missing network, a gated, vanished or busy repository and too little disk,
    ValueError when the repository holds no such model in the one format that is read.
    """
    from huggingface_hub import HfApi

    if is_local(source.repo):
        raise ValueError(f"{source.repo!r} is a local folder, there is nothing to download.")
    try:
        found = HfApi(endpoint=endpoint, library_name="aig").model_info(
            source.repo, revision=source.revision, timeout=timeout, files_metadata=True
        )
    except Exception as error:  # whatever the client and its transport raise becomes one line
        raise explained(error, source) from error
    commit = found.sha or ""
    if not COMMIT.fullmatch(commit):
        raise Unavailable(f"The Hub does not say which commit {source.revision!r} of {source.repo} is.")
    listed = {sibling.rfilename: sibling for sibling in found.siblings or ()}
    files = tuple(_file(listed[name], source.repo) for name in needed(listed, source))
    if sum(file.size for file in files) > most:
        raise ValueError(f"{source.repo} is {_size(sum(file.size for file in files))} large, at most {_size(most)} are fetched.")
    folder = (place or store()) / source.repo.replace("/", "--") / commit
    left = sum(file.size - min(file.size, _present(folder / file.name)) for file in files)
    check_space(folder, left)
    return Download(repo=source.repo, revision=source.revision, commit=commit, files=files, folder=folder, left=left)


def needed(names: Iterable[str], source: Source) -> tuple[str, ...]:
    """The files of a repository that a model is loaded from: safetensors in the wanted variant, configurations, tokenizers.

    Never a pickle, code or a template, unless the app's own list names it. ValueError when the repository lacks what is needed.
    """
    if isinstance(source, Listed):
        if missing := sorted(set(source.files) - set(names)):
            raise ValueError(f"{source.repo} has no file {missing[0]!r}.")
        return source.files
    names = {name for name in names if _PATH.fullmatch(name) and ".." not in name}
    if isinstance(source, Tuned) and source.kind == "lora":
        path = "/".join(filter(None, (source.subfolder, source.weight_name)))
        if path not in names:
            there = ", ".join(sorted(name for name in names if name.endswith(".safetensors"))[:8]) or "none"
            raise ValueError(f"{source.repo} has no file {path!r}; its .safetensors files: {there}.")
        settings = "/".join(filter(None, (source.subfolder, "adapter_config.json")))  # rank and alpha of peft's format
        return (path, *({settings} & names))
    if isinstance(source, Tuned):
        return _component(names, source.subfolder, "", source.repo)
    if "model_index.json" not in names:
        raise ValueError(f"{source.repo} is not a diffusers pipeline: it has no model_index.json.")
    there = [part for part in COMPONENTS if any(name.startswith(f"{part}/") for name in names)]
    if not {"unet", "transformer"} & set(there):
        raise ValueError(f"{source.repo} has no denoiser: neither a unet nor a transformer folder.")
    parts = (name for part in there for name in _component(names, part, source.variant, source.repo))
    return ("model_index.json", *parts)


def _component(names: set[str], folder: str, variant: str, repo: str) -> tuple[str, ...]:
    """The files of one component: the weights that the stock loader would choose, and its small text files."""
    inside = {name for name in names if name.rpartition("/")[0] == folder}
    weights = {name for name in inside if ".safetensors" in Path(name).name}
    texts = {name for name in inside if name.endswith(TEXTS)} - weights
    where = folder or "its top folder"
    if any(part in folder for part in ("tokenizer", "scheduler")):
        return tuple(sorted(texts))
    if f"{folder}/config.json".lstrip("/") not in texts:
        raise ValueError(f"{repo} has no config.json in {where}.")
    chosen = (
        {name for name in weights if _variant(name) == variant}
        or {name for name in weights if _variant(name) == ""}
        or {name for name in weights if _variant(name) == "fp16"}
    )
    if not any(name.endswith(".safetensors") for name in chosen):
        raise ValueError(f"{repo} has no .safetensors weights in {where}; other formats can hold code and are not read.")
    return tuple(sorted(texts | chosen))


def _variant(name: str) -> str | None:
    """The fp16 of ``unet/model.fp16.safetensors``, of a shard or an index; "" without one; None for a file of another kind."""
    found = _WEIGHTS.fullmatch(name.rpartition("/")[2]) or _INDEX.fullmatch(name.rpartition("/")[2])
    return None if found is None else next(filter(None, found.groups()), "")


def _file(sibling: RepoSibling, repo: str) -> File:
    """A file with the size and checksum that the Hub states."""
    size, checksum = sibling.size, (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
    if not isinstance(size, int) or size < 0 or not re.fullmatch("[0-9a-f]{64}" if sibling.lfs else "[0-9a-f]{40}", checksum):
        raise Unavailable(f"The Hub states no size and checksum for {sibling.rfilename!r} of {repo}.")
    if sibling.rfilename.endswith(TEXTS) and size > MAX_TEXT:
        raise ValueError(f"{sibling.rfilename!r} of {repo} is {_size(size)} large, too much for a configuration.")
    return File(name=sibling.rfilename, size=size, digest=checksum)


def explained(error: Exception, source: Source | Download) -> Unavailable:
    """One line for whatever the Hub's client, its transport or the disk raised."""
    repo, revision = source.repo, source.revision
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name: the transport's package changed between releases
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "OfflineModeIsEnabled" in kinds:
        line = f"{repo} is not on this machine and the app runs without network: fetch it with python -m aig fetch."
    elif "GatedRepoError" in kinds or status == 403:
        line = f"{repo} is gated: ask for access at https://huggingface.co/{repo} and set HF_TOKEN to a token of yours."
    elif "RevisionNotFoundError" in kinds:
        line = f"{repo} has no revision {revision!r}."
    elif "DisabledRepoError" in kinds:
        line = f"{repo} has been disabled on the Hub."
    elif "EntryNotFoundError" in kinds or "RemoteEntryNotFoundError" in kinds:
        line = f"A file of {repo} has vanished from the Hub since it was listed."
    elif status == 401:
        line = (
            f"{repo} does not exist on the Hub, or needs a login: if it is private or gated, ask for access at "
            f"https://huggingface.co/{repo} and set HF_TOKEN to a token of yours."
        )
    elif "RepositoryNotFoundError" in kinds or status == 404:
        line = f"{repo} does not exist on the Hub, or no longer; check its name."
    elif status == 429:
        line = "The Hub has received too many requests from this address; wait some minutes, or set HF_TOKEN."
    elif status is not None:
        line = f"The Hub answers with error {status} for {repo}; try again later."
    elif "TimeoutException" in kinds or isinstance(error, TimeoutError):
        line = f"The Hub did not answer in time for {repo}; try again later."
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        line = f"The disk is full: {repo} could not be stored; make room and start again, it will be continued."
    elif kinds & {"NetworkError", "ProtocolError", "TransportError"} or isinstance(error, ConnectionError):
        line = f"The Hub cannot be reached for {repo}: check the network; the models on this machine keep working."
    elif isinstance(error, OSError) and error.errno is not None:
        line = f"The files of {repo} cannot be stored: {error.strerror}."
    elif isinstance(error, OSError):  # the client's own check of the length
        line = f"The download of {repo} broke off; start it again, it will be continued."
    else:
        line = f"The Hub's answer for {repo} makes no sense ({type(error).__name__})."
    return Unavailable(line)


def check_space(folder: Path, left: int) -> None:
    """Unavailable when the disk has no room for the bytes that are still to come."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if left and left + RESERVE > free:
        raise Unavailable(f"The download needs {_size(left)} and the disk has {_size(free)} free, of which {_size(RESERVE)} are kept.")


def _present(path: Path) -> int:
    """Bytes of a file that are on the disk, whole or in part."""
    return max(length(path), length(path.with_name(path.name + ".part")))


def length(path: Path) -> int:
    """The size of a file in bytes, 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0


def _size(count: int) -> str:
    """1_234_567 -> '1.2 MB'."""
    for unit, bytes_in in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= bytes_in:
            return f"{count / bytes_in:.1f} {unit}"
    return f"{count} bytes"
