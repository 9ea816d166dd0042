"""What captions say, and which words of a prompt the model knows."""

from __future__ import annotations

import numpy as np
import torch

from aig.portraits import captions
from aig.portraits.population import sample_attributes


def test_the_known_words_are_those_that_captions_contain():
    people, rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    seen = {word for _ in range(4_000) for word in captions.words_of(captions.caption(sample_attributes(people), rng, 0.6))}
    assert seen == set(captions.known_words())


def test_words_that_no_caption_contains_are_read_as_unknown_and_told_but_for_articles():
    assert captions.unknown_words("The woman, an avataaars portrait with glasses; a WOMAN") == ("woman",)
    words = captions.tokenizer()
    ids = words("a woman with the glasses").input_ids
    assert [i == words.unk_token_id for i in ids] == [False, False, True, False, True, False, False]
    assert max(words.get_vocab().values()) + 1 == len(words)
