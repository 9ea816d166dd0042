"""Scores of columns: pairing, sizes, the sentence, and what is said when too little is known."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch

from aig.measures import intervals
from aig.measures import scores as scoring
from aig.measures.diversity import distances
from aig.measures.scores import ENOUGH, TOO_FEW

COLUMNS = (("base", "Base"), ("tuned", "Reward-tuned"), ("aig", "AIG"))
VALUES = {"hat": ("no", "yes")}
score = partial(scoring.score, proxy="preference")


def columns(n: int, spread=(1.0, 0.1, 0.8), reward=(0.0, 4.0, 3.0), seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 16, generator=rng)
    features = torch.stack([torch.ones(16) * 0.5 + s * noise for s in spread])
    rewards = {"preference": torch.tensor(reward)[:, None] + 0.01 * torch.randn(3, n, generator=rng)}
    classes = {"hat": torch.eye(2)[torch.randint(2, (3, n), generator=rng)]}
    return features, rewards, classes


def test_the_headline_says_what_is_kept():
    scores = score(COLUMNS, *columns(12), VALUES)
    assert "AIG keeps" in scores.headline and "75%" in scores.headline
    lost = scores.columns[1].deltas["diversity"]
    assert lost.high < 0 and scores.columns[0].deltas == {}


def test_no_difference_is_too_few_images_to_tell():
    features, rewards, classes = columns(6, spread=(1, 1, 1), reward=(0, 0, 0))
    assert score(COLUMNS, features, rewards, classes, VALUES).headline == TOO_FEW


def test_few_images_give_no_share_of_diversity():
    few, enough = (score(COLUMNS, *columns(n), VALUES).headline for n in (ENOUGH - 1, ENOUGH))
    assert "of the reward that tuning won; too few images to tell about diversity." in few
    assert few.count("%") == 1 and enough.count("%") == 2


def test_a_tuned_model_that_lost_or_won_nothing_is_not_too_few_images():
    wider = score(COLUMNS, *columns(12, spread=(0.1, 1.0, 0.5)), VALUES).headline
    assert wider.startswith("AIG keeps 75%")
    assert wider.endswith("of the reward that tuning won; tuning lost no diversity.")
    worse = score(COLUMNS, *columns(12, reward=(4.0, 0.0, 3.0)), VALUES).headline
    assert worse.endswith("of the diversity that tuning lost; tuning won no reward.")
    neither = score(COLUMNS, *columns(12, spread=(0.1, 1.0, 0.5), reward=(4.0, 0.0, 3.0)), VALUES).headline
    assert neither == "Tuning lost no diversity and won no reward."


def test_an_uncertain_reward_is_said_beside_a_sure_diversity():
    features, rewards, classes = columns(12)
    noise = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    headline = score(COLUMNS, features, {"preference": noise}, classes, VALUES).headline
    assert headline.endswith("of the diversity that tuning lost; too few images to tell about reward.")


def test_a_middle_column_equal_to_an_end_keeps_all_or_nothing():
    features, rewards, classes = columns(9)
    for like, text in ((0, "100% (100 to 100) of the diversity"), (1, "0% (0 to 0) of the diversity")):
        order = [0, 1, like]
        same = score(COLUMNS, features[order], {"preference": rewards["preference"][order]}, classes, VALUES).headline
        assert f"keeps {text}" in same and f"{100 * like}% ({100 * like} to {100 * like}) of the reward" in same


def test_one_image_has_rewards_but_no_diversity():
    scores = score(COLUMNS, *columns(1), VALUES)
    assert scores.columns[0].diversity is None and scores.columns[0].vendi is None
    assert "two images" in scores.headline
    json.dumps(scores.to_json(), allow_nan=False)


def test_json_has_no_infinities_and_the_table_has_a_line_a_column():
    scores = score(COLUMNS, *columns(2), VALUES)
    json.dumps(scores.to_json(), allow_nan=False)
    assert [line.split()[0] for line in scores.table().splitlines()[1:4]] == ["Base", "Reward-tuned", "AIG"]


def test_attribute_shares_add_up():
    scores = score(COLUMNS, *columns(8), VALUES)
    assert sum(scores.columns[2].attributes["hat"].shares.values()) == pytest.approx(1)


def test_deltas_are_the_paired_differences_from_the_first_column():
    features, rewards, classes = columns(8)
    deltas = score(COLUMNS, features, rewards, classes, VALUES).columns[2].deltas
    expected = intervals.diversity(distances(features[2])) - intervals.diversity(distances(features[0]))
    assert deltas["diversity"] == expected.interval()
    reward = rewards["preference"][2] - rewards["preference"][0]
    assert deltas["preference"].value == pytest.approx(float(reward.mean()))


def test_columns_of_unequal_size_are_refused():
    features, rewards, classes = columns(4)
    with pytest.raises(ValueError, match="as many images"):
        score(COLUMNS[:2], features, rewards, classes, VALUES)
    with pytest.raises(ValueError, match="as many images"):
        score(COLUMNS, features[:, :0], rewards, classes, VALUES)
    with pytest.raises(ValueError, match="as many images"):
        score(COLUMNS, features, {"preference": rewards["preference"][:, :3]}, classes, VALUES)
    with pytest.raises(ValueError, match="'hat'"):
        score(COLUMNS, features, rewards, {"hat": classes["hat"][:, :3]}, VALUES)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(part, bad):
    features, rewards, classes = columns(4)
    (features, rewards["preference"], classes["hat"])[part].view(-1)[0] = bad
    with pytest.raises(ValueError, match="finite"):
        score(COLUMNS, features, rewards, classes, VALUES)


def test_a_proxy_that_is_not_a_reward_is_refused():
    with pytest.raises(ValueError, match="'aesthetic'.*preference"):
        score(COLUMNS, *columns(4), VALUES, proxy="aesthetic")
