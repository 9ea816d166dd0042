"""The stage as HTML: well-formed, text stays text, the trace to scale."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from aig.measures.scores import ENOUGH
from aig.ui.parts.stage import Bar, Grid, Metric, Stage, Trace, asked, stage

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</h2><script>alert(1)</script>", '" onmouseover="alert(1)', "&lt;b&gt;", "<!--",
    "' autofocus onfocus='alert(1)", "${alert(1)}", "`${alert(1)}`", "{{constructor}}", "\\${alert(1)}", "]]>",
    "\u202egnp.exe", "a\nb",
]  # fmt: skip


class Tags(HTMLParser):
    """Collects the tags, attribute names and text of a fragment, and checks that every tag is closed in order."""

    VOID = {"img", "br", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = set(), set(), "", []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(fragment: str) -> Tags:
    tags = Tags()
    tags.feed(fragment)
    tags.close()
    assert not tags.open
    return tags


def a_stage(text: str, state: str = "done", picture: str = "data:image/png;base64,AA==") -> Stage:
    entropies = {"base": 0.97, "tuned": 0.2, "aig": 0.9}
    bars = [Bar(kind=kind, label=kind, shares={text: 0.6, "b": 0.4}, entropy=e) for kind, e in entropies.items()]
    columns = [
        Grid(
            kind=kind,
            title=text,
            about=text,
            metrics=[Metric(label=text, value=text, delta=text, note=text)],
            picture=picture,
            alt=text,
        )
        for kind in ("base", "tuned", "aig")
    ]
    return Stage(
        state=state,
        asked=asked(text, seeds=text),
        sentence=text,
        status=text,
        share=0.5,
        images=5,
        columns=columns,
        attributes={text: bars},
        notice=text,
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_outside_text_is_only_ever_text(text):
    harmless = parse(stage(a_stage("x")))
    page = stage(a_stage(text))
    seen = parse(page)
    assert seen.tags == harmless.tags and seen.attributes == harmless.attributes
    assert not re.search(r"[`$\\{}]", page)
    assert text in seen.text


def test_the_layout_does_not_depend_on_the_state():
    def skeleton(view):
        return re.sub(r'="[^"]*"|>[^<]+<', "", stage(view))

    assert skeleton(a_stage("x", "running")) == skeleton(a_stage("x", "waiting"))
    assert "aspect-ratio:3/2" in stage(a_stage("x", "waiting", picture=""))


def traced(points, shares=(0.0, 0.5, 1.0)) -> ElementTree.Element:
    trace = Trace(steps=len(shares), shares=shares, points=points)
    figure = re.search(r'<figure class="trace">.*?</figure>', stage(replace(a_stage("x"), trace=trace)))
    return ElementTree.fromstring(figure[0])


def places(figure, kind):
    line = figure.find(f"./svg/polyline[@class='{kind}']")
    return [tuple(map(float, place.split(","))) for place in line.get("points").split()]


def test_the_trace_draws_every_column_to_scale_and_tells_it_in_words():
    figure = traced(((1, (0.1, 0.2, 0.3)), (3, (0.8, 0.4, 0.7))))
    share = places(figure, "g")
    for kind, values in (("base", (0.1, 0.8)), ("tuned", (0.2, 0.4)), ("aig", (0.3, 0.7))):
        line = places(figure, kind)
        assert [x for x, _ in line] == [share[0][0], share[2][0]]
        heights = [share[0][1] + value * (share[2][1] - share[0][1]) for value in values]
        assert [y for _, y in line] == pytest.approx(heights, abs=0.11)
    assert figure.find("svg").get("aria-label").endswith("at step 3 of 3: x 0.80, x 0.40, x 0.70")


@pytest.mark.parametrize("points", [(), ((1, (None, None, None)),)])
def test_a_trace_without_diversity_is_empty_and_as_large(points):
    figure = traced(points, shares=(1.0,))
    assert figure.find("./svg/polyline[@class='aig']") is None
    assert figure.find("svg").get("viewBox") == traced(((1, (1.4, 0.2, 0.3)),)).find("svg").get("viewBox")


def test_every_picture_has_an_alternative_text():
    page = stage(a_stage("nine portraits"))
    assert page.count("<img") == page.count('alt="nine portraits"') == 3


@pytest.mark.parametrize(("state", "images", "flagged"), [("done", ENOUGH, True), ("done", ENOUGH - 1, False), ("running", ENOUGH, False)])
def test_the_attribute_that_tuning_narrowed_most_is_flagged_when_enough_images_are_done(state, images, flagged):
    page = stage(replace(a_stage("x", state), images=images))
    assert ("collapsed most" in page) == flagged
