"""Presets as text: the shipped ones are whole, a new file is a new preset, and every mistake is named with its file
and key."""

from __future__ import annotations

import dataclasses

import diffusers
import pytest

from aig.published import presets

TEXT = (presets.FOLDER / "sd15.toml").read_text()


def test_the_shipped_presets_are_whole() -> None:
    assert set(presets.names()) == {"sd15", "sd21", "sdxl", "sd35-medium", "flux-dev", "flux-schnell", "pixart-sigma"}
    for preset in map(presets.load, presets.names()):
        assert issubclass(getattr(diffusers, preset.pipeline), diffusers.DiffusionPipeline)
        assert preset.held_out in preset.rewards
        assert preset.memory > 0 and preset.download > 0
    assert presets.load("flux-schnell").closed and not presets.load("sdxl").closed
    shipped = [presets.load(name) for name in presets.names()]
    unpinned = [entry.repo for preset in shipped for entry in (preset, *preset.tuned) if not entry.pinned]
    assert unpinned == ["black-forest-labs/FLUX.1-dev", "jieliu/SD3.5M-FlowGRPO-PickScore"]


def test_a_file_adds_a_preset(tmp_path) -> None:
    (tmp_path / "mine.toml").write_text(TEXT.replace('title = "Stable Diffusion 1.5"', 'title = "Mine"'))
    assert presets.names(tmp_path) == ("mine",)
    mine = presets.load("mine", tmp_path)
    assert mine == dataclasses.replace(presets.load("sd15"), name="mine", title="Mine")
    with pytest.raises(ValueError, match="Unknown preset 'sd15'; choose one of: mine"):
        presets.load("sd15", tmp_path)


MISTAKES = {
    "unknown key": ('closed = false', 'closed = false\ncolour = "red"', "sd15.toml: the key 'colour' is unknown; choose among: .*title"),
    "name": ('closed = false', 'closed = false\nname = "x"', "'name' is unknown"),
    "tuned key": ('kind = "lora"', 'kind = "lora"\nalpha = 1', "sd15.toml, tuned entry 1: the key 'alpha' is unknown; .*weight_name"),
    "missing": ("steps = 25\n", "", "the key 'steps' is missing"),
    "text for number": ("steps = 25", 'steps = "25"', "steps must be a whole number, not '25'"),
    "bool for number": ("steps = 25", "steps = true", "steps must be a whole number, not True"),
    "fraction": ("steps = 25", "steps = 2.5", "steps must be a whole number"),
    "number for bool": ("gated = false", "gated = 0", "gated must be true or false, not 0"),
    "not a list": ('rewards = ["pickscore", "hpsv2", "imagereward", "aesthetics", "clip"]', 'rewards = "clip"', "must be a list of texts"),
    "class": ('"StableDiffusionPipeline"', '"os.system"', "pipeline 'os.system' is unknown; choose among: StableDiffusionPipeline"),
    "reward": ('["pickscore", "hpsv2"', '["taste", "hpsv2"', "rewards 'taste' is unknown; choose among: pickscore"),
    "twice": ('["pickscore", "hpsv2"', '["hpsv2", "hpsv2"', "names something twice"),
    "held out": ('held_out = "imagereward"', 'held_out = "x"', "held_out 'x' is unknown"),
    "features": ('"dinov2"', '"vgg"', "features 'vgg' is unknown; choose among: dinov2, clip"),
    "kind": ('kind = "lora"', 'kind = "dora"', "kind 'dora' is unknown; choose among: lora, denoiser"),
    "range": ("steps = 25", "steps = 1000", "steps must be from 1 to 100, not 1000"),
    "infinite": ("guidance = 7.5", "guidance = inf", "guidance must be from 0 to 30"),
    "nan": ("guidance = 7.5", "guidance = nan", "guidance must be from 0 to 30"),
    "size": ("size = 512", "size = 500", "multiple of 32"),
    "newline": ('title = "Stable Diffusion 1.5"', 'title = "a\\nb"', "title must be one line"),
    "empty": ('title = "Stable Diffusion 1.5"', 'title = ""', "title must be one line of 1 to 300"),
    "url": ('repo = "stable-diffusion-v1-5/stable-diffusion-v1-5"', 'repo = "https://x.y/z"', "'https://x.y/z' is not a model id"),
    "revision": ('revision = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"', 'revision = "../x"', "revision '../x' is not a commit"),
    "pickle": ("lora_diffusers.safetensors", "lora_diffusers.bin", "is not the name of a .safetensors file"),
    "path": ('weight_name = "spo', 'weight_name = "../spo', "is not the name of a .safetensors file"),
    "subfolder": ('subfolder = "unet"', 'subfolder = "../unet"', "subfolder '../unet' is not a plain folder name"),
    "same name": ('name = "Diffusion-DPO"', 'name = "SPO"', "two tuned entries named 'SPO'"),
    "not toml": ("steps = 25", "steps 25", "sd15.toml is not valid TOML"),
    "tuned not tables": ("[[tuned]]", "[tuned.x]", "not valid TOML|tuned must be a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_file_key_and_choices(name: str) -> None:
    old, new, message = MISTAKES[name]
    assert old in TEXT
    with pytest.raises(ValueError, match=message) as caught:
        presets.parse(TEXT.replace(old, new), "sd15")
    assert "\n" not in str(caught.value) and "sd15.toml" in str(caught.value)


def own(**changes: str) -> presets.Preset:
    given = {"pipeline": "StableDiffusionXLPipeline", "base": "owner/base", "tuned": "owner/tuned", "kind": "denoiser"}
    return presets.own(**{**given, **changes})


def test_your_own_model_takes_the_settings_of_its_class() -> None:
    preset, like = own(subfolder="unet", revision="a" * 40), presets.load("sdxl")
    assert (preset.repo, preset.tuned[0].repo, preset.tuned[0].subfolder) == ("owner/base", "owner/tuned", "unet")
    assert (preset.size, preset.steps, preset.guidance, preset.rewards) == (
        like.size,
        like.steps,
        like.guidance,
        like.rewards,
    )
    assert preset.tuned[0].pinned and not preset.pinned
    assert own(kind="lora", weight_name="a.safetensors").tuned[0].weight_name == "a.safetensors"
    assert own(pipeline="SanaPipeline").size == 1024  # no preset of this class


@pytest.mark.parametrize(
    "repo",
    ["", "name", "/etc/passwd", "../x", "a/../b", "./..", "./a/../../b", "./", "https://h.co/a/b", "file:///etc", "a/b/c",
     "a\\b", "a/b\n", "~/x", "C:\\x", "a/b?x=1", "a/b@main", "-a/b", "a/.git", "hf://a/b", "a//b", "./a//b", "./.ssh", "\u0430/b"],
)  # fmt: skip
def test_ids_that_are_no_ids(repo: str) -> None:
    for where in ("base", "tuned"):
        with pytest.raises(ValueError, match="is not a model id|one line"):
            own(**{where: repo})


def test_local_folders_lie_below_the_operators_root(tmp_path, monkeypatch) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "model").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    monkeypatch.delenv("AIG_MODELS", raising=False)
    with pytest.raises(ValueError, match="not allowed here; the operator can set AIG_MODELS"):
        presets.folder_of("./model")
    monkeypatch.setenv("AIG_MODELS", str(root))
    assert presets.folder_of("./model") == root / "model"
    with pytest.raises(ValueError, match="lies outside"):
        presets.folder_of("./link")
    with pytest.raises(ValueError, match="There is no folder './other'"):
        presets.folder_of("./other")
