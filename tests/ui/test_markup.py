"""Templates: text stays text, HTML stays HTML, and what is missing is an error."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from aig.ui import markup
from aig.ui.markup import Markup


@given(st.text())
def test_escape_keeps_the_text_and_nothing_else(text):
    escaped = markup.escape(text)
    assert unescape(escaped).replace("\r", "") == text.replace("\r", "") or "\0" in text
    assert not re.search(r"[<>\"'`$\\{}]", escaped)


def test_markup_is_not_escaped_again():
    assert markup.escape(markup.escape("<b>")) == markup.escape("<b>") == "&#60;b&#62;"
    assert markup.escape(Markup("<b>")) == "<b>"


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "{{ entries }}", "${alert(1)}", "a & b"])
def test_a_value_of_a_template_is_text(text):
    filled = markup.fill("compare/added.html", {"problem": text, "entries": []})
    assert unescape(filled) == f'<p class="added wrong" role="alert">{text}</p>' and not re.search(r"[`$\\{}]", filled)


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="problem"):
        markup.fill("compare/added.html", {"entries": []})


def test_line_breaks_and_indentation_of_a_template_are_for_its_readers():
    assert "\n" not in markup.source("parts/stage.html") and "  " not in markup.source("compare/added.html")
