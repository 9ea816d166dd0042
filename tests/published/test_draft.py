"""DRaFT+ on stock pipelines of several families: the reward rises, KL holds it back, a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from aig import __main__ as cli
from aig.method import adapters
from aig.published.draft import FILE, attach, draft, rated, sampled
from aig.published.draft_settings import DraftSettings, card
from tests import families

TUNED = ("sd", "sdxl", "sd3")
PROMPTS = ["a b", "c", "d e f"]
SHORT = DraftSettings(updates=10, batch=2, at_once=2, steps=3, rank=4, rate=0.1, seed=3)


def bright(images, prompts):
    """A reward that every denoiser can raise: the mean of the red channel."""
    return images[:, 0].mean((1, 2))


def rows_of(family, out, settings=SHORT, **options):
    pipe = families.build(family)
    return pipe, list(draft(pipe, bright, PROMPTS, settings, out=out, **options))


def mean(rows, key):
    return sum(row[key] for row in rows) / len(rows)


def pictures(pipe, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe("a b", num_inference_steps=3, generator=generator, output_type="np", **options).images


def redness(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    return pipe(["a b"] * 8, num_inference_steps=3, generator=generators, output_type="np").images[..., 0].mean()


@pytest.fixture(scope="module", params=TUNED)
def run(request, tmp_path_factory):
    """A finished run without KL."""
    out = tmp_path_factory.mktemp(request.param)
    return request.param, *rows_of(request.param, out), out


def test_the_reward_rises_and_the_base_weights_stay(run):
    family, pipe, rows, _ = run
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[0]["gap"] == pytest.approx(0, abs=1e-9) and rows[-1]["gap"] > 1e-4  # a fresh LoRA changes nothing
    before = families.build(family)
    # by the same noise: the updates' own rewards are of other prompts and seeds each time, which differ by as much as is gained
    assert redness(pipe) > redness(before) + 0.005
    for part, kept in zip(pipe.components.values(), before.components.values()):
        if isinstance(part, torch.nn.Module):
            now = {name.replace(".base_layer", ""): tensor for name, tensor in part.state_dict().items() if "lora_" not in name}
            assert all(torch.equal(now[name], tensor) for name, tensor in kept.state_dict().items())


def test_the_file_loads_in_a_stock_pipeline_and_gives_the_same_pictures(run):
    family, pipe, _, out = run
    fresh = families.build(family)
    base = pictures(fresh)
    fresh.load_lora_weights(out, weight_name=FILE)
    tuned = pictures(fresh)
    assert np.abs(tuned - base).max() > 0.01
    np.testing.assert_allclose(tuned, pictures(pipe), atol=1e-5)
    own = families.build(family)
    part = "unet" if hasattr(own, "unet") else "transformer"
    setattr(own, part, adapters.fused(getattr(own, part), out / FILE))
    np.testing.assert_allclose(tuned, pictures(own), atol=1e-4)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "curve.jsonl", FILE, "settings.json"]


def test_kl_holds_back(run, tmp_path):
    _, held = rows_of(run[0], tmp_path, dataclasses.replace(SHORT, kl=50.0))
    free = run[2]
    assert mean(held[-4:], "gap") < 0.5 * mean(free[-4:], "gap") and mean(held[-4:], "reward") < mean(free[-4:], "reward")
    assert held[1]["loss"] == pytest.approx(50 * held[1]["gap"] - held[1]["reward"], rel=1e-4)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_killed_run_goes_on_to_the_same_bits(family, tmp_path):
    settings = dataclasses.replace(SHORT, updates=4)
    _, whole = rows_of(family, tmp_path / "whole", settings)
    killed = draft(families.build(family), bright, PROMPTS, settings, out=tmp_path / "killed", save_every=0.0)
    first = [next(killed), next(killed)]
    killed.close()
    torch.manual_seed(99)  # what others draw does not matter
    _, rest = rows_of(family, tmp_path / "killed", settings)
    assert first + rest == whole
    assert (tmp_path / "killed" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    curve = [json.loads(line) for line in (tmp_path / "killed" / "curve.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in curve] == [row["reward"] for row in whole]
    _, more = rows_of(family, tmp_path / "killed", dataclasses.replace(settings, updates=5))  # train on
    assert [row["step"] for row in more] == [5]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    settings = dataclasses.replace(SHORT, updates=2, batch=3, kl=1.0)
    _, whole = rows_of("sd", tmp_path / "a", dataclasses.replace(settings, at_once=3))
    _, parts = rows_of("sd", tmp_path / "b", dataclasses.replace(settings, at_once=2))
    for one, other in zip(whole, parts):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


def gradient(family, settings):
    """Of the mean red, by the LoRA's parameters, one vector."""
    pipe = families.build(family)
    settings = dataclasses.replace(settings, guidance=5.0)
    trained = attach(pipe, settings)
    for parameter in trained:
        torch.nn.init.constant_(parameter, 0.05)
    images, _ = sampled(pipe, PROMPTS[:2], [1, 2], settings)
    bright(images, PROMPTS[:2]).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in trained]), images.detach(), pipe


@pytest.mark.parametrize("family", TUNED)
def test_truncation_cuts_the_gradient_and_nothing_else(family):
    (one, images, pipe), (two, images_2, _), (all_, images_3, _) = (
        gradient(family, dataclasses.replace(SHORT, truncation=k)) for k in (1, 2, 3)
    )
    assert torch.equal(images, images_2) and torch.equal(images, images_3)
    stock = pipe(PROMPTS[:2], num_inference_steps=3, guidance_scale=5.0, output_type="pt",
                 generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)]).images  # fmt: skip
    assert torch.allclose(stock, images, atol=1e-5)  # sampling in training is stock sampling
    assert one.norm() > 0 and not torch.allclose(one, two, rtol=1e-2) and not torch.allclose(two, all_, rtol=1e-2)


def test_the_full_gradient_is_the_finite_difference():
    pipe = families.build("sd").to(torch.float64)
    settings = dataclasses.replace(SHORT, truncation=3, guidance=5.0)
    trained = [parameter.data for parameter in attach(pipe, settings)]
    adapters.denoiser(pipe).to(torch.float64)
    parameter = next(p for p in adapters.denoiser(pipe).parameters() if p.requires_grad)
    assert len(trained) > 1
    for other in adapters.denoiser(pipe).parameters():
        if other.requires_grad:
            torch.nn.init.constant_(other, 0.05)

    def value() -> torch.Tensor:
        return bright(sampled(pipe, ["a"], [1], settings)[0].double(), ["a"]).mean()

    value().backward()
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (parameter.grad * direction).sum().item()
    with torch.no_grad():
        step = 0.02
        parameter.add_(step * direction)
        up = value().item()
        parameter.sub_(2 * step * direction)
        assert (up - value().item()) / (2 * step) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("family", ["sd-v", "flux", "flux-schnell", "pixart", "sana"])
def test_the_other_families_are_tuned_too(family, tmp_path):
    size = 32 if family == "sana" else 16
    settings = dataclasses.replace(SHORT, updates=2, size=size, guidance=0.0 if family == "flux-schnell" else None)
    _, rows = rows_of(family, tmp_path, settings)
    assert len(rows) == 2 and rows[1]["gap"] > 0 and (tmp_path / FILE).is_file()


def test_half_precision(tmp_path):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        pipe, rows = rows_of("sd", tmp_path, dataclasses.replace(SHORT, updates=2, precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(rows) == 2 and rows[1]["gap"] > 0
    assert {p.dtype for p in adapters.denoiser(pipe).parameters() if p.requires_grad} == {torch.float32}


def test_the_card_tells_what_was_done(run):
    _, pipe, rows, out = run
    text = card(out, base="owner/model", licence="openrail", reward="red")
    for said in (
        "base_model: owner/model",
        "tuned on red",
        "openrail",
        type(pipe).__name__,
        "| rank | 4 |",
        "| kl | 0.0 |",
        "| updates | 10 |",
    ):
        assert said in text
    assert f"| reward | {mean(rows[:10], 'reward'):.4f} | {mean(rows[-10:], 'reward'):.4f} |" in text
    assert "base_model" not in card(out, base="/home/me/model", licence="", reward="red")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"updates": 0}, "updates"),
        ({"truncation": 4}, "truncation"),
        ({"kl": -1.0}, "kl"),
        ({"kl": float("nan")}, "kl"),
        ({"size": 101}, "size"),
        ({"precision": "int3"}, "int3"),
        ({"guidance": float("inf")}, "guidance"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        rows_of("sd", tmp_path / "out", dataclasses.replace(SHORT, **change))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_tuned_is_refused(tmp_path):
    pipe = families.build("sd")
    with pytest.raises(ValueError, match="no"):
        next(draft(pipe, bright, [], SHORT, out=tmp_path / "a"))
    with pytest.raises(ValueError, match="not differentiable"):
        rated(lambda images, prompts: torch.zeros(1), torch.zeros(1, 3, 8, 8), ["a"])
    with pytest.raises(ValueError, match="shape"):
        rated(lambda images, prompts: images.mean(), torch.zeros(1, 3, 8, 8, requires_grad=True), ["a"])
    list(draft(pipe, bright, PROMPTS, dataclasses.replace(SHORT, updates=1), out=tmp_path / "b"))
    with pytest.raises(ValueError, match="already has a LoRA"):
        next(draft(pipe, bright, PROMPTS, SHORT, out=tmp_path / "c"))
    with pytest.raises(ValueError, match=r"kl 0.0, not 2.0"):
        rows_of("sd", tmp_path / "b", dataclasses.replace(SHORT, kl=2.0))


def test_the_command_shows_sizes_without_loading_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the command lifts it; this puts it back
    pipe = families.build("sd")
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a b\n\n c \n")
    asked = [
        "--model",
        str(tmp_path / "model"),
        "--reward",
        "clip",
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--updates",
        "5",
    ]
    assert cli.main(["draft", *asked, "--kl", "0.5", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    tuned = sum(parameter.numel() for parameter in attach(pipe, DraftSettings(updates=1)))
    assert "2 prompts" in printed and f"{tuned / 1e6:,.2f} million" in printed and f"{64 * 27:,} evaluations" in printed
    assert not (tmp_path / "out").exists()
    assert cli.main(["draft", *asked[:1], str(tmp_path), *asked[2:], "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "model_index.json" in capsys.readouterr().err


def test_the_command_tunes_a_model_from_a_folder_and_writes_a_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    families.build("sd").save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a b\n")
    asked = [
        "draft",
        "--model",
        str(tmp_path / "model"),
        "--reward",
        "preference",
        "--prompts",
        str(tmp_path / "prompts.txt"),
    ]
    asked += [
        "--updates",
        "2",
        "--batch",
        "2",
        "--steps",
        "2",
        "--rank",
        "2",
        "--size",
        "16",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(asked) == 0, capsys.readouterr().err
    fresh = families.build("sd")
    base = pictures(fresh)
    fresh.load_lora_weights(tmp_path / "out", weight_name=FILE)
    assert np.abs(pictures(fresh) - base).max() > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# model tuned on preference" in card and "DDIMScheduler" in card and "| seed | 0 |" in card
    assert cli.main([*asked, "--kl", "2"]) == 2
    assert "holds a run with kl 0.0, not 2.0" in capsys.readouterr().err
