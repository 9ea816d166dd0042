"""Scores of pictures under prompts: means over prompts, intervals over seeds."""

from __future__ import annotations

import pytest
import torch

from aig.measures.diversity import attribute_entropy, distances, mean_pairwise
from aig.world import records
from aig.world.records import Records

P, S = 3, 6


def some(seed: int = 0) -> Records:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    return Records(
        rewards={"r": draw(P * S), "held-out": draw(P * S)},
        features=draw(P * S, 5) - 0.5,
        told={"style": draw(P * S, 4).softmax(1), "hat": draw(P * S, 2).softmax(1)},
        covered=(draw(P * S) > 0.5).float(),
    )


def test_entropy_is_that_of_the_shares_with_each_image_left_out():
    p, n = torch.eye(3)[torch.tensor([0, 0, 1, 2])], 4
    found = records.entropy({"a": p, "b": p[[0, 1, 1, 0]]})
    assert found.value == pytest.approx((attribute_entropy(p) + attribute_entropy(p[[0, 1, 1, 0]])) / 2)
    kept = torch.arange(n) != 2
    assert found.left_out[2] == pytest.approx((attribute_entropy(p[kept]) + attribute_entropy(p[[0, 1, 1, 0]][kept])) / 2)


def test_a_score_is_the_mean_over_prompts_and_leaves_one_seed_out_under_all_of_them():
    found = some()
    scores = records.scores(found, "r", lambda told: told["hat"][:, 0], [["style", "hat"], ["style"], ["hat"]])
    assert scores["r"].value == pytest.approx(float(found.rewards["r"].mean()))
    without = found.rewards["r"].view(P, S)[:, torch.arange(S) != 2].mean()
    assert scores["r"].left_out.shape == (S,) and scores["r"].left_out[2] == pytest.approx(float(without))
    assert scores["by modes"].value + scores["within modes"].value == pytest.approx(scores["r"].value)
    parts = found.features.view(P, S, -1)
    assert scores["diversity"].value == pytest.approx(float(torch.stack([mean_pairwise(distances(f)) for f in parts]).mean()))
    first = {name: p[:S] for name, p in found.told.items()}
    entropies = [
        (attribute_entropy(first["style"]) + attribute_entropy(first["hat"])) / 2,
        attribute_entropy(found.told["style"][S : 2 * S]),
        attribute_entropy(found.told["hat"][2 * S :]),
    ]
    assert scores["entropy"].value == pytest.approx(sum(entropies) / P, abs=1e-6)


def test_records_round_trip_and_can_be_cut(tmp_path):
    found = some()
    found.save(tmp_path / "a.safetensors")
    again = records.load(tmp_path / "a.safetensors")
    assert torch.equal(again.rewards["r"], found.rewards["r"]) and torch.equal(again.covered, found.covered)
    assert torch.allclose(again.features, found.features, atol=1e-3) and again.told.keys() == found.told.keys()
    cut = again.some(slice(S, 2 * S))
    assert torch.equal(cut.rewards["r"], found.rewards["r"][S : 2 * S]) and len(cut.told["hat"]) == S
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
