"""Links: every request survives the round trip as a plain query value, and everything else gets one sentence."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints
from urllib.parse import parse_qs, quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aig.runs import links
from aig.runs.request import MAX_PROMPT, MAX_SCHEDULE, Request

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
VALUES = {
    str: TEXT,
    int: st.integers(-(10**9), 10**9),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    tuple[str, ...]: st.lists(TEXT, max_size=4).map(tuple),
}
HINTS = get_type_hints(Request)
REQUESTS = st.builds(Request, **{field.name: VALUES[HINTS[field.name]] for field in dataclasses.fields(Request)})


@given(REQUESTS)
def test_every_request_survives_the_round_trip(request):
    assert links.decode(links.encode(request)) == request


@given(REQUESTS)
def test_a_link_needs_no_escaping_and_survives_a_query(request):
    link = links.encode(request)
    assert quote(link, safe="!=*+~:,;") == link
    assert links.decode(parse_qs(f"run={link}", keep_blank_values=True)["run"][0]) == request


def test_a_link_is_readable_and_the_longest_one_is_read():
    link = links.encode(Request(prompt="a person with glasses", schedule="points:0,0;0.4,0.1;1,1"))
    assert "prompt=a+person+with+glasses!seed=7!" in link and "schedule=points:0,0;0.4,0.1;1,1!" in link
    longest = Request(prompt="\U0001f600" * MAX_PROMPT, schedule=";" * MAX_SCHEDULE)
    assert links.decode(links.encode(longest)) == longest


def test_a_missing_setting_has_its_default():
    assert links.decode("v1!seed=3") == Request(seed=3)
    assert links.decode("v1") == Request()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"), ("v2!seed=1", "v2"), ("seed=1", "seed=1"), ("v1!sneed=1", "sneed"), ("v1!seed", "'seed'"),
        ("v1!seed=1!seed=1", "twice"), ("v1!seed=1.5", "1.5"), ("v1!seed=١", "whole"), ("v1!seed=" + "9" * 400, "999"),
        ("v1!guidance=nan", "nan"), ("v1!guidance=inf", "inf"), ("v1!guidance=1e999", "1e999"), ("v1!guidance=", "''"),
        ("v1!closed=1", "'1'"), ("v1!prompt=~C3", "~C3"), ("v1!prompt=~zz", "~zz"), ("v1!prompt=<b>", "<b>"),
        ("v1!prompt=%3Cscript%3E", "%3C"), ("v1!prompt=a\0b", "x00"), ("v1!" + "a" * 20_000, "too long"),
        ("v1!__class__=x", "__class__"), ("v1!prompt=~ED~A0~80", "prompt"), (None, "NoneType"), (["v1"], "list"),
    ],
)  # fmt: skip
def test_anything_else_gets_one_sentence_that_names_it(text, named):
    with pytest.raises(ValueError) as refused:
        links.decode(text)
    sentence = str(refused.value)
    assert named in sentence and sentence.count(". ") == 0 and len(sentence) < 400 and "\n" not in sentence


@example("\U00010000" * 60)
@given(st.text() | st.text().map(lambda rest: "v1!" + rest) | st.text("v1!sedprompt=~+*e.-0123456789", max_size=60))
def test_hostile_text_never_raises_anything_else(text):
    try:
        assert isinstance(links.decode(text), Request)
    except ValueError as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 400


@pytest.mark.parametrize("broken", [{"prompt": "\ud800"}, {"guidance": float("inf")}, {"kl": float("nan")}])
def test_what_no_link_can_hold_is_refused(broken):
    with pytest.raises(ValueError, match=next(iter(broken))):
        links.encode(Request(**broken))
