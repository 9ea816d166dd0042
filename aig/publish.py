"""What a Hugging Face Space gets of this repository, whether it may be published, and the upload.

A Space needs the app, its package, its assets and its card; tests, CI, build and lint settings stay behind. Only files
that git tracks are ever sent, and only as they are committed, so that a Space is always some commit.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from aig.assets import verify

NEEDED = ("app.py", "requirements.txt", "README.md", "LICENSE", "aig", "assets")  # at the top of the repository
MAX_FILE = 10_000_000  # bytes; above, the Hub wants LFS or Xet
WEIGHTS = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".onnx",
    ".gguf",
    ".h5",
    ".msgpack",
    ".npy",
    ".npz",
}

# https://huggingface.co/docs/hub/spaces-config-reference
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
REQUIRED = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file",
            "short_description", "license", "tags", "startup_duration_timeout")  # fmt: skip
MAX_DESCRIPTION = 60  # characters


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What would be uploaded to ``space``; nothing may be, as long as there are problems."""

    space: str
    files: dict[str, int]  # path -> bytes
    left: tuple[str, ...]  # what git tracks at the top of the repository and a Space does not need
    problems: tuple[str, ...]  # a sentence each

    @property
    def size(self) -> int:
        return sum(self.files.values())

    def table(self) -> str:
        """Every file with its size, the total, and what stays behind."""
        lines = [f"{size:12,}  {name}" for name, size in self.files.items()]
        return "\n".join(
            [
                *lines,
                f"{self.size:12,}  bytes in {len(self.files)} files for {self.space}",
                "left out: " + " ".join(self.left),
            ]
        )


def plan(root: Path, space: str) -> Upload:
    """Choose and check the files of the git repository at ``root``. ValueError for a bad name, or where git tracks
    nothing."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(space)
    except HFValidationError as problem:
        raise ValueError(f"A Space is named owner/name, not {space!r}.") from problem
    if space.count("/") != 1:
        raise ValueError(f"A Space is named owner/name, not {space!r}.")
    tracked = _git(root, "ls-files", "-z").split("\0")[:-1]
    if not tracked:
        raise ValueError(f"Git tracks no files in {str(root)!r}; publish from a clone of the repository.")
    names = sorted(name for name in tracked if Path(name).parts[0] in NEEDED)
    present = [name for name in names if (root / name).is_file() and not (root / name).is_symlink()]
    files = {name: (root / name).stat().st_size for name in present}
    return Upload(
        space=space,
        files=files,
        left=tuple(dict.fromkeys(Path(name).parts[0] for name in tracked if name not in files)),
        problems=(
            *_missing(names, files),
            *_uncommitted(root, names),
            *_heavy(files),
            *_assets(root, files),
            *front_matter(root),
        ),
    )


def upload(plan: Upload, root: Path) -> str:
    """Make the Space hold exactly the plan's files, in one commit; the address of the Space.

    ValueError when the plan has problems, when there is no token, and when the Hub cannot be reached or refuses.
    """
    if plan.problems:
        raise ValueError(f"Nothing was uploaded: {plan.problems[0]}")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if get_token() is None:
        raise ValueError("Nothing was uploaded: there is no Hugging Face token; run `hf auth login` or set HF_TOKEN.")
    hub = HfApi()
    try:
        hub.create_repo(plan.space, repo_type="space", space_sdk="gradio", exist_ok=True)
        hub.upload_folder(
            repo_id=plan.space,
            repo_type="space",
            folder_path=root,
            allow_patterns=list(plan.files),
            delete_patterns=["*"],  # files of an earlier version that are gone
            commit_message=f"Publish {_git(root, 'rev-parse', '--short', 'HEAD').strip()}",
        )
    except HfHubHTTPError as problem:
        reason = problem.server_message or str(problem).splitlines()[0]
        raise ValueError(f"The Hub refused {plan.space!r}: {reason}") from problem
    except (HTTPError, OSError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"Nothing was uploaded: the Hub cannot be reached ({reason}).") from problem
    return f"https://huggingface.co/spaces/{plan.space}"


def front_matter(root: Path) -> list[str]:
    """What is wrong with the YAML block on top of README.md, a sentence each, by the Spaces configuration reference."""
    import yaml  # comes with huggingface_hub
    from huggingface_hub import SpaceHardware, metadata_load
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        matter = metadata_load(root / "README.md")
    except (ValueError, OSError, yaml.YAMLError) as problem:
        return [f"README.md has no readable front matter: {' '.join(str(problem).split())}."]
    if not matter:
        return ["README.md has no front matter."]
    wrong = [f"README.md's front matter lacks {key}." for key in REQUIRED if not matter.get(key)]

    def check(key: str, right: object, wanted: str) -> None:
        if matter.get(key) and not right:
            wrong.append(f"README.md's {key} must be {wanted}, not {matter[key]!r}.")

    def text(key: str) -> str:
        return matter[key] if isinstance(matter.get(key), str) else ""

    def texts(key: str) -> bool:
        return isinstance(matter.get(key), list) and all(isinstance(item, str) and item for item in matter[key])

    def version(key: str) -> Version | None:
        try:
            return Version(text(key))
        except InvalidVersion:
            return None

    requirements = (root / "requirements.txt").read_text() if (root / "requirements.txt").is_file() else ""
    wanted = {r.name: r for r in map(Requirement, re.findall(r"(?m)^[A-Za-z][^#\n]*", requirements))}
    gradio, sdk, runs = wanted.get("gradio", Requirement("gradio")), version("sdk_version"), version("python_version")
    python = SpecifierSet(tomllib.loads((root / "pyproject.toml").read_text())["project"]["requires-python"])
    check("emoji", text("emoji") and not text("emoji").isascii() and len(text("emoji")) <= 8, "one emoji")
    for key in ("colorFrom", "colorTo"):
        check(key, text(key) in COLOURS, f"one of {', '.join(COLOURS)}")
    check("sdk", matter.get("sdk") == "gradio", "gradio")
    check("sdk_version", sdk and sdk in gradio.specifier, f"a version in quotes that {gradio} admits")
    check(
        "python_version",
        runs and runs in python,
        f"a version in quotes within {python}",
    )
    check("app_file", (root / text("app_file")).is_file(), "a file of the repository")
    check(
        "short_description",
        0 < len(text("short_description")) <= MAX_DESCRIPTION,
        f"at most {MAX_DESCRIPTION} characters",
    )
    check("license", re.fullmatch(r"[a-z0-9.-]+", text("license")), "a licence identifier like mit")
    for key in ("tags", "models", "datasets", "preload_from_hub"):
        check(key, texts(key), "a list of words")
    for key in ("models", "datasets"):
        check(key, texts(key) and all(item.count("/") == 1 for item in matter[key]), "a list of owner/name")
    check(
        "startup_duration_timeout",
        re.fullmatch(r"\d+(\.\d+)?[smhd]", text("startup_duration_timeout")),
        "a duration like 30m or 1h",
    )
    check(
        "suggested_hardware",
        text("suggested_hardware") in [hardware.value for hardware in SpaceHardware],
        "a hardware of Spaces",
    )
    return wrong


def _missing(names: list[str], files: dict[str, int]) -> list[str]:
    """Tracked files that are gone or are links, and top-level parts without a file."""
    gone = [f"{name} is tracked, but is not a file." for name in names if name not in files]
    tops = {Path(name).parts[0] for name in files}
    return gone + [f"The repository has no {name}." for name in NEEDED if name not in tops]


def _uncommitted(root: Path, names: list[str]) -> list[str]:
    changed = _git(root, "diff", "HEAD", "--name-only", "-z", "--", *NEEDED).split("\0")[:-1]
    return [f"{name} has changes that are not committed." for name in changed if name in names]


def _heavy(files: dict[str, int]) -> list[str]:
    return [f"{name} has {size:,} bytes; below {MAX_FILE:,} a plain push works." for name, size in files.items() if size >= MAX_FILE]


def _assets(root: Path, files: dict[str, int]) -> list[str]:
    """Weights whose manifest does not name them, and what differs from its checksum."""
    problems, known = [], set()
    for manifest in sorted((root / "assets").glob("*/manifest.json")):
        folder = manifest.parent
        try:
            verify(folder)
        except (ValueError, OSError) as problem:
            problems.append(str(problem))
        else:
            known |= {f"assets/{folder.name}/{name}" for name in json.loads(manifest.read_text())}
    strays = [name for name in files if Path(name).suffix.lower() in WEIGHTS and name not in known]
    forgotten = sorted(known - files.keys())
    return [
        *problems,
        *(f"{name} holds weights, but is in no manifest that is right." for name in strays),
        *(f"{name} is in a manifest, but git does not track it." for name in forgotten),
    ]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["git failed"])[0]
        raise ValueError(f"Git cannot read {str(root)!r}: {reason}")
    return done.stdout
