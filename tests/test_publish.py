"""Publishing to a Space: what is listed, what stops it, and that a missing token or network is one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants

from aig import __main__ as cli
from aig import publish
from aig.assets import ASSETS

ROOT = ASSETS.parent


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A small repository with this one's card and requirements, that may be published."""
    for name in ("README.md", "requirements.txt", "pyproject.toml", "LICENSE", "app.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    weights = tmp_path / "assets" / "world" / "unet.safetensors"
    for path, content in ((weights, b"weights"), (tmp_path / "aig" / "a.py", b""), (tmp_path / "tests" / "t.py", b"")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (weights.parent / "manifest.json").write_text(json.dumps({weights.name: hashlib.sha256(b"weights").hexdigest()}))
    git(tmp_path, "init", "-q")
    return tmp_path


def problems(root: Path) -> str:
    git(root, "add", "-A", "-f")
    git(root, "commit", "-q", "--allow-empty", "-m", "all")
    return "\n".join(publish.plan(root, "me/aig").problems)


def test_this_repository_may_be_published():
    plan = publish.plan(ROOT, "me/aig")
    assert not [problem for problem in plan.problems if "not committed" not in problem]
    assert {
        "app.py",
        "requirements.txt",
        "README.md",
        "aig/runs/engine.py",
        "assets/portraits/manifest.json",
    } <= plan.files.keys()
    assert not any(name.startswith(("tests/", ".")) for name in plan.files)
    assert {"tests", ".gitignore", ".ci"} <= set(plan.left)
    assert plan.files["app.py"] == (ROOT / "app.py").stat().st_size and plan.size == sum(plan.files.values())


def test_a_good_repository_has_no_problems_and_its_tests_stay_behind(repository):
    assert problems(repository) == ""
    plan = publish.plan(repository, "me/aig")
    assert sorted(plan.files) == ["LICENSE", "README.md", "aig/a.py", "app.py", "assets/world/manifest.json",
                                  "assets/world/unet.safetensors", "requirements.txt"]  # fmt: skip
    assert plan.left == ("pyproject.toml", "tests")
    assert f"{plan.size:,}  bytes in 7 files for me/aig" in plan.table() and "LICENSE" in plan.table()


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("assets/big.json", b"0" * 10_000_000, "assets/big.json has 10,000,000 bytes"),
        ("aig/stray.pt", b"x", "aig/stray.pt holds weights"),
        ("assets/world/more.safetensors", b"x", "assets/world/more.safetensors holds weights"),
        ("assets/world/unet.safetensors", b"changed", "differs from its checksum"),
        ("README.md", b"# No front matter", "README.md has no"),
        ("README.md", b"---\ntitle: [\n---\n", "README.md has no readable front matter"),
    ],
)
def test_what_is_wrong_is_said(repository, path, content, said):
    (repository / path).write_bytes(content)
    assert said in problems(repository)
    with pytest.raises(ValueError, match="Nothing was uploaded"):
        publish.upload(publish.plan(repository, "me/aig"), repository)


@pytest.mark.parametrize("name", ["app.py", "assets/world/unet.safetensors", "LICENSE"])
def test_a_missing_part_is_said(repository, name):
    (repository / name).unlink()
    assert name.removeprefix("assets/") in problems(repository)


def test_only_what_is_committed_is_published(repository):
    problems(repository)
    (repository / "app.py").write_text("changed = True")
    (repository / "aig" / "untracked.py").write_text("")
    plan = publish.plan(repository, "me/aig")
    assert plan.problems == ("app.py has changes that are not committed.",) and "aig/untracked.py" not in plan.files


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("emoji: portrait", "emoji"),
        ("colorFrom: teal", "colorFrom must be one of red"),
        ("sdk: streamlit", "sdk must be gradio"),
        ("sdk_version: 5.0.0", "sdk_version"),
        ("sdk_version: latest", "sdk_version"),
        ("sdk_version: 6.4", "sdk_version"),  # YAML reads a number
        ('python_version: "3.10"', "python_version"),
        ("python_version: 3.12", "python_version"),
        ("app_file: main.py", "app_file"),
        ("short_description: " + "a" * 61, "short_description must be at most 60"),
        ("license: []", "lacks license"),
        ("tags: one", "tags must be a list"),
        ("models: [stable-diffusion]", "models must be a list of owner/name"),
        ("startup_duration_timeout: soon", "startup_duration_timeout"),
        ("suggested_hardware: abacus", "suggested_hardware"),
    ],
)
def test_bad_front_matter_is_named(repository, line, said):
    key = line.split(":")[0]
    _, matter, body = (repository / "README.md").read_text().split("---\n", 2)
    kept = [row for row in matter.splitlines() if not row.startswith(key + ":") and not (key == "tags" and row.startswith("  - "))]
    (repository / "README.md").write_text("\n".join(["---", *kept, line, "---", body]))
    found = publish.front_matter(repository)
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize("name", ["aig", "a/b/c", "me/..", "me/a b", "", "https://huggingface.co/me"])
def test_a_space_is_named_owner_slash_name(name):
    with pytest.raises(ValueError, match="owner/name"):
        publish.plan(ROOT, name)


def test_outside_a_repository(tmp_path):
    with pytest.raises(ValueError, match="Git cannot read"):
        publish.plan(tmp_path, "me/aig")


@pytest.mark.parametrize(
    ("token", "offline", "said"),
    [
        ("", False, "there is no Hugging Face token"),
        ("hf_x", False, "the Hub cannot be reached"),
        ("hf_x", True, "offline"),
    ],
)
def test_no_token_or_no_network_is_one_line(repository, monkeypatch, token, offline, said):
    problems(repository)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(repository / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=said) as raised:
        publish.upload(publish.plan(repository, "me/aig"), repository)
    assert len(str(raised.value).splitlines()) == 1 and (not token or token not in str(raised.value))


def test_the_command_lists_and_uploads_nothing_in_a_dry_run(repository, monkeypatch, capsys):
    problems(repository)
    monkeypatch.setattr(cli, "ASSETS", repository / "assets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the command lifts it; this puts it back
    assert cli.main(["publish", "--space", "me/aig", "--dry-run"]) == 0
    assert "bytes in 7 files for me/aig" in capsys.readouterr().out
    (repository / "app.py").unlink()
    assert cli.main(["publish", "--space", "me/aig"]) == 2
    assert "app.py" in capsys.readouterr().err
