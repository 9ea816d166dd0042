"""Every training stage, at tiny size on random pictures: the loss falls, a kill resumes, the asset loads with stock diffusers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

from aig.portraits.population import ATTRIBUTES, encode, sample_attributes
from aig.portraits.rewards import build
from aig.training import warm_cosine
from aig.world import autoencoder, data, denoiser, draft, evaluate, figures, methods, preference, presets, ruler, ship, tilt, tradeoffs
from aig.world.tastes import FINISH, TASTES, utility

TINY = dataclasses.replace(
    presets.CPU, name="tiny", size=32, drawings=96, held_out=32, latent_channels=4, vae_channels=16,
    vae_blocks=(2, 1, 1), vae_steps=12, decoder_steps=4, text_steps=4, denoiser_cycles=((3, 1e-3), (6, 5e-4)),
    tilted_cycles=1, tilt_samples=8, denoiser_batch=4, unet_channels=(32, 64), text_width=48, text_layers=1, ruler_steps=4, reward_steps=4,
    kl=(0.0, 1.0), tuning={"preference": (1, 2)},
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A work folder with random flat pictures in place of drawings (drawing needs Node)."""
    patch = pytest.MonkeyPatch()
    patch.setattr(presets, "WORK", tmp_path_factory.mktemp("world"))
    TINY.work.mkdir(parents=True)
    rng = np.random.default_rng(0)
    people = [sample_attributes(rng) for _ in range(TINY.drawings + TINY.held_out)]
    colours = rng.integers(0, 255, (len(people), 2, 2, 3), dtype=np.uint8)
    np.save(TINY.work / "images.npy", colours.repeat(TINY.size // 2, 1).repeat(TINY.size // 2, 2))
    np.save(TINY.work / "labels.npy", np.array([encode(p) for p in people], dtype=np.uint8))
    yield TINY
    patch.undo()


def beside(world, name, **settings):
    """Another world of the same pictures, with a work folder of its own."""
    other = dataclasses.replace(world, name=name, **settings)
    other.work.mkdir()
    for file in ("images.npy", "labels.npy"):
        (other.work / file).write_bytes((world.work / file).read_bytes())
    return other


def test_autoencoder_learns_and_resumes_after_a_kill(world):
    whole = list(autoencoder.train(beside(world, "unbroken")))
    run = autoencoder.train(world)
    for _ in range(5):
        next(run)
    run.close()  # nothing was saved yet: the next run starts over, and must see the same batches
    rows = list(autoencoder.train(world))
    assert [r["step"] for r in rows] == [*range(1, 13), *range(1, 5)]
    assert rows[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-3)
    assert rows[11]["loss"] < rows[0]["loss"] and rows[-1]["loss"] < rows[0]["loss"]
    assert list(autoencoder.train(world)) == []  # finished
    curve = [json.loads(line) for line in (world.work / "autoencoder" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve][-12:] == list(range(1, 13))


def test_denoiser_learns_and_resumes_after_a_kill_in_a_tilted_cycle(world):
    rows = {}
    for preset in (beside(world, "whole"), beside(world, "killed")):
        for stage in (autoencoder.train, ruler.train):
            list(stage(preset))
        run = denoiser.train(preset)
        if preset.name == "killed":  # right after the drawings' weights were corrected
            for row in run:
                if (row["step"], row["steps"]) == (5, 6):
                    break
            run.close()
            run = denoiser.train(preset)
        rows[preset.name] = list(run)
    assert rows["whole"][-1]["loss"] < rows["whole"][0]["loss"]
    for name in rows:
        (path,) = (TINY.work.parent / name / "denoiser").glob("weights-*")
        assert path.name == "weights-3.safetensors"
        weights = load_file(path)["weights"]
        assert weights.mean() == pytest.approx(1, abs=1e-3) and weights.std() > 0
    assert rows["killed"][-1]["loss"] == pytest.approx(rows["whole"][-1]["loss"], rel=1e-3)


def test_the_denoiser_asks_for_the_ruler_before_it_trains(world):
    with pytest.raises(ValueError, match="run the stage ruler"):
        next(denoiser.train(beside(world, "without a ruler")))


def test_latents_stay_what_they_are_while_the_decoder_trains_on(world):
    list(autoencoder.train(world))
    short = beside(world, "short", decoder_steps=0)
    list(autoencoder.train(short))
    first, last = (AutoencoderTiny.from_pretrained(preset.work / "vae") for preset in (short, world))
    assert first.config.scaling_factor == last.config.scaling_factor
    for part, frozen in (("encoder", True), ("decoder", False)):
        one, other = (getattr(vae, part).state_dict() for vae in (first, last))
        same = [torch.equal(one[name], other[name]) for name in one]
        assert all(same) if frozen else not any(same)


def test_the_other_stages_run_in_order(world, tmp_path):
    list(autoencoder.train(world))
    for stage in (ruler.train, denoiser.train, preference.train, draft.train):
        rows = list(stage(world))
        assert rows and all(np.isfinite(row["loss"]) for row in rows)
    list(ship.run(world, assets=tmp_path))
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "portraits", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    base = pipe("a robot", num_inference_steps=2, generator=seed(), output_type="np").images
    assert base.shape == (1, world.size, world.size, 3)
    lora = tmp_path / "portraits" / "loras" / "preference-kl-0.safetensors"
    pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    tuned = pipe("a robot", num_inference_steps=2, generator=seed(), output_type="np").images
    assert np.abs(base - tuned).max() > 0
    names = {path.stem for path in lora.parent.iterdir()}
    assert names == {f"{r}-kl-{end}" for r in draft.SHIPPED for end in ("0", "1", "0-after-1")}


def few_prompts(bench, prompts=2, seeds=3):
    return methods.Pictures(name="few", prompts=("a robot", "a person with glasses"), seeds=tuple(range(seeds)), guidance=2.0)


def test_everything_is_measured_and_drawn(world, tmp_path, monkeypatch):
    for stage in (autoencoder.train, ruler.train, denoiser.train, preference.train, draft.train):
        list(stage(world))
    list(ship.run(world, assets=tmp_path))
    for module, name, small in (
        (evaluate, "BATCH", 8), (evaluate, "STEPS", 2), (tradeoffs, "STEPS", 2), (evaluate, "LENGTHS", (2, 3)), (evaluate, "IN_QUESTION", (3,)),
        (methods, "STEPS", 2), (methods, "SEEDS", 4), (methods, "FEWER", 3), (methods, "with_prompts", few_prompts), (figures, "SEEDS", tuple(range(1_000, 1_004))),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, small)
    folder = tmp_path / "portraits"
    assert list(evaluate.run(world, assets=tmp_path, samples=16, part="population")) and not (folder / "card.md").exists()
    with pytest.raises(ValueError, match="part 'moods'; choose one of: instruments"):
        next(evaluate.run(world, assets=tmp_path, part="moods"))
    (alone,) = (world.work / "evaluation").glob("*.json")
    assert alone.name.startswith("population-")
    alone.write_text(json.dumps(json.loads(alone.read_text()) | {"minutes": 7}))
    assert list(evaluate.run(world, assets=tmp_path, samples=16))
    assert evaluate.read(folder)["population"]["minutes"] == 7  # it was not measured again
    assert list(evaluate.run(world, assets=tmp_path, samples=64, part="finished")) == []
    assert "population" not in evaluate.read(folder) and "page" in evaluate.read(folder)  # the former was measured of fewer samples
    assert list(evaluate.run(world, assets=tmp_path, samples=16, part="finished")) == []
    result, card = evaluate.read(folder), (folder / "card.md").read_text()
    assert result["settings"]["samples"] == 16
    assert [len(result[part]["table"]) for part in ("solver UniPC", "solver with guidance")] == [2, 2 * 3]
    assert "| solver | guidance | samples | 2 steps | 3 steps |" in card and "| UniPC | 1.000 | 16 |" in card
    for name in draft.SHIPPED:
        found = result[f"tuned: {name}"]
        assert {row["score"] for row in found["at equal reward"]} <= set(tradeoffs.COMPARED)
        assert {row["family"] for row in found["hypervolumes"]} == {*methods.AIG, *methods.OTHERS}
        for row in found["table"]:
            value = {name: score["value"] for name, score in row.items() if name != "method"}
            assert value["within modes"] + value["by modes"] == pytest.approx(value[name], abs=1e-3)
            assert 0 <= value["entropy"] <= 1 and 0 <= value["precision"] <= 1 and f"| {row['method']} |" in card
        first, back = found["decided"]["curves"]["base first"], found["decided"]["curves"]["tuned first"]
        assert [row["k"] for row in first] == [row["k"] for row in back] == [0, 1, 2]
        assert first[0][name] == back[-1][name] and first[-1][name] == back[0][name]  # from the tuned model to the base, and back
    assert len(result["page"]["prompts"]) == 2 and "The page at its defaults: 2 prompts" in card
    assert {row["tuned"] for row in result["gaps"]["rows"]} == set(draft.OBJECTIVES)

    kept = {path.name for path in (world.work / "evaluation").iterdir()}
    records = set((world.work / "evaluation" / "records").iterdir())
    lora = folder / "loras" / "vivid-kl-1.safetensors"
    save_file({name: 1.5 * weight for name, weight in load_file(lora).items()}, lora)
    ship.write_manifest(folder)
    list(evaluate.run(world, assets=tmp_path, samples=16))
    anew = {path.name.rsplit("-", 1)[0] for path in (world.work / "evaluation").iterdir() if path.name not in kept}
    assert "population" not in anew and "tuned vivid" in anew  # the base's figures are still good
    assert len(set((world.work / "evaluation" / "records").iterdir()) - records) == 1  # and so are all pictures but those of one LoRA

    pytest.importorskip("matplotlib", reason="all was measured, but figures need matplotlib")
    list(figures.run(world, assets=tmp_path))
    for name in (
        "reconstructions.webp",
        "neighbours.webp",
        "hacking-preference.webp",
        "tradeoff-vivid.svg",
        "decided-fashion.svg",
        "gap.svg",
        "light.webp",
    ):
        assert (folder / "figures" / name).stat().st_size > 1_000 and f"figures/{name}" in card


def test_steadiness_does_not_count_what_prompts_are_worth_by_themselves():
    def told(prompts, worth):
        class Bright(torch.nn.Module):
            def raw(self, images, prompts):
                return images.mean((1, 2, 3)) + worth * torch.tensor([float(len(prompt)) for prompt in prompts])

        x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 0.8, 8).view(-1, 1, 1, 1)
        return float(preference.steadiness(Bright(), x, prompts, torch.Generator().manual_seed(1)))

    prompts = [" " * i for i in range(8)]
    plain = told(prompts, worth=0.0)
    assert plain > 0 and told(prompts, worth=1.0) == pytest.approx(plain, rel=1e-3)


def test_annotators_see_how_much_noise_a_picture_has_and_dislike_it(world):
    gray = torch.full((64, 3, 32, 32), 0.5)
    amounts = preference.finishes(64, torch.Generator().manual_seed(0)) | {"light": torch.zeros(64)}
    finished = preference.finished(gray, amounts, torch.Generator().manual_seed(0))
    seen = finished.std((1, 2, 3))
    assert 0.3 < (amounts["noise"] == 0).float().mean() < 0.7 and seen[amounts["noise"] == 0].max() < 1e-3
    assert torch.corrcoef(torch.stack([seen, amounts["noise"]]))[0, 1] > 0.95
    labels = torch.as_tensor(data.load(world)[1][:2])
    amounts = {name: torch.zeros(2) for name in FINISH} | {"noise": torch.tensor([0.0, 1.0])}
    for taste in TASTES.values():
        clean, noisy = utility(taste, labels[:1].repeat(2, 1), amounts, [""] * 2)
        assert noisy < clean


def test_attacks_stay_in_reach_and_raise_the_reward(world):
    reward = build("preference").eval()
    x = data.load(world)[0][:4]
    start = data.unit(x)
    up = preference.attacked(reward, start, [""] * 4, steps=5, stride=0.5)
    assert (up - start).abs().max() <= preference.REACH + 1e-6 and up.min() >= 0 and up.max() <= 1
    assert (reward.raw(start, [""] * 4) < reward.raw(up, [""] * 4)).all()
    assert preference.robustness(reward, x, steps=3) > 0


def test_labels_round_trip_and_shards_are_pure():
    rng = np.random.default_rng(3)
    for _ in range(200):
        person = sample_attributes(rng)
        assert {n: v[i] for (n, v), i in zip(ATTRIBUTES.items(), encode(person), strict=True)} == person
    assert data.SHARD > 0


def test_the_learning_rate_follows_its_cycles():
    cycles = ((1_000, 6e-4), (1_500, 3e-4))
    rate = [warm_cosine(step, cycles) for step in range(1_500)]
    assert rate[0] == pytest.approx(6e-6, rel=0.01) and rate[999] < 1e-8 and rate[1_499] < 1e-7
    assert 5.5e-4 < max(rate[:1_000]) <= 6e-4 and 2.6e-4 < max(rate[1_000:]) <= 3e-4
    assert rate[100:1_000] == sorted(rate[100:1_000], reverse=True)


@pytest.mark.parametrize("solver", evaluate.SOLVERS)
def test_up_to_a_hundred_steps_take_a_timestep_each(solver):
    """Stock solvers begin with the second of two steps at their first timestep, and run off the end."""
    scheduler = evaluate.SOLVERS[solver](DPMSolverMultistepScheduler(**denoiser.schedule(), use_karras_sigmas=True).config)
    for steps in range(1, 101):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps.unique()) == steps


def test_every_sampling_step_starts_at_a_noise_level_in_use():
    low, high = denoiser.NOISE
    solver = DPMSolverMultistepScheduler(**denoiser.schedule(), use_karras_sigmas=True)
    for steps in (1, 2, 12, 50, 100):
        solver.set_timesteps(steps)
        assert solver.timesteps[0] == solver.config.num_train_timesteps - 1 and len(solver.timesteps) == steps
        levels = solver.sigmas[:-1]
        assert (low * 0.99 <= levels).all() and (levels <= high * 1.01).all() and (levels.diff() < 0).all()
        if steps > 1:
            assert levels[0] > 0.8 * high and levels[-1] < 1.1 * low


def test_half_of_the_training_timesteps_are_where_sampling_goes():
    noise, rng = DDIMScheduler(**denoiser.schedule()), torch.Generator().manual_seed(0)
    t = torch.stack([denoiser.timesteps(noise, 32, rng) for _ in range(1_000)])
    uniform, visited = t[:, ::2], t[:, 1::2]
    last = noise.config.num_train_timesteps - 1
    assert len(uniform.unique()) == last + 1  # every one is trained at
    assert uniform.float().mean() == pytest.approx(last / 2, rel=0.02)
    levels = (1 / noise.alphas_cumprod[visited] - 1).sqrt() ** (1 / 7)
    low, high = (level ** (1 / 7) for level in denoiser.NOISE)
    assert float(levels.mean()) == pytest.approx((low + high) / 2, rel=0.02)
    assert float(levels.std()) == pytest.approx((high - low) / 12**0.5, rel=0.02)


def test_what_moods_change_weighs_more():
    rng = np.random.default_rng(0)
    labels = np.array([encode(sample_attributes(rng)) for _ in range(2_000)], dtype=np.uint8)
    latents = torch.randn(2_000, 3, 4, 4)
    latents[:, :, 2, 1] += 5 * torch.as_tensor(labels[:, list(ATTRIBUTES).index("mood")]).float()[:, None]
    weight = denoiser.emphasis(latents, labels)
    assert weight.shape == (4, 4) and weight.mean() == pytest.approx(1)
    assert weight.argmax() == 2 * 4 + 1 and weight.max() / weight.min() == pytest.approx(denoiser.SUBTLE, rel=0.05)


def test_balancing_changes_which_captions_are_seen_but_not_what_they_show():
    rng = np.random.default_rng(0)
    people = [sample_attributes(rng) for _ in range(4_000)]
    shown = denoiser.balanced(np.array([encode(p) for p in people]), torch.ones(len(people)))
    torch_rng = torch.Generator().manual_seed(0)
    seen = [(people[i], always) for i, always in (denoiser.choose(shown, torch_rng) for _ in range(8_000))]
    with_hat = [p["hat"] == "yes" for p, always in seen if always == "hat"]
    assert np.mean(with_hat) == pytest.approx(0.5, abs=0.06)
    for hat in ("yes", "no"):  # what such captions leave open, here the background, is as in the drawings
        truth = [p["background"] == "blue" for p in people if p["hat"] == hat]
        chosen = [p["background"] == "blue" for p, always in seen if always == "hat" and p["hat"] == hat]
        assert np.mean(chosen) == pytest.approx(np.mean(truth), abs=0.07)
    assert np.mean([p["hat"] == "yes" for p, always in seen if not always]) == pytest.approx(
        np.mean([p["hat"] == "yes" for p in people]), abs=0.03
    )


def test_weights_change_what_captions_leave_open_and_nothing_else():
    labels = np.array([encode(sample_attributes(np.random.default_rng(i))) for i in range(2_000)], dtype=np.uint8)
    hat, glasses = (torch.as_tensor(labels[:, list(ATTRIBUTES).index(name)]) for name in ("hat", "glasses"))
    rng, shares = torch.Generator().manual_seed(0), []
    for weights in (torch.ones(2_000), torch.where(glasses == 1, 2.0, 1.0)):
        shown = denoiser.balanced(labels, weights)
        seen = [denoiser.choose(shown, rng) for _ in range(8_000)]
        index = {name: torch.tensor([i for i, always in seen if always == name]) for name in ("", "hat", "glasses")}
        shares.append([float((glasses[index[""]] == 1).float().mean()), float((hat[index["hat"]] == 1).float().mean())])
        assert float((glasses[index["glasses"]] == 1).float().mean()) == pytest.approx(0.5, abs=0.06)
    (plain, hats), (tilted, hats_too) = shares
    assert tilted == pytest.approx(2 * plain / (1 + plain), abs=0.03) and tilted > plain + 0.1
    assert hats == pytest.approx(0.5, abs=0.06) and hats_too == pytest.approx(0.5, abs=0.06)


def test_how_much_too_often_a_drawing_is_sampled_is_found_from_the_shares_alone():
    rng = np.random.default_rng(0)
    labels = torch.as_tensor(np.array([encode(sample_attributes(rng)) for _ in range(4_000)]).astype(np.int64))
    columns = {name: labels[:, i] for i, name in enumerate(ATTRIBUTES)}
    true = torch.where(columns["glasses"] == 1, 0.5, 1.0) * torch.where(columns["style"] == 2, 1.5, 1.0)
    true /= true.mean()
    shares = {name: torch.zeros(len(values)).index_add_(0, columns[name], true) / len(labels) for name, values in ATTRIBUTES.items()}
    found = tilt.density_ratio(labels, shares, samples=100_000)
    assert found.mean() == pytest.approx(1, abs=1e-4) and (found - true).abs().max() < 0.05
    few = tilt.density_ratio(labels, shares, samples=20)
    assert (few - 1).abs().max() < (found - 1).abs().max()  # of few samples little is believed


def test_the_gpu_preset_builds_what_it_says():
    preset = presets.GPU
    vae, model = autoencoder.build(preset), denoiser.Conditional(preset)
    with torch.inference_mode():
        latents = vae.encode(torch.zeros(1, 3, preset.size, preset.size)).latents
        assert latents.shape == (1, preset.latent_channels, preset.latent_size, preset.latent_size)
        text = torch.zeros(1, 4, preset.text_width)
        assert model.unet(latents, 0, text).sample.shape == latents.shape
        assert vae.decode(latents).sample.shape == (1, 3, preset.size, preset.size)
