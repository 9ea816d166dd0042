"""HTML from the templates beside the parts that they draw; every value in them is text, unless it is ``Markup`` already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent
# Gradio compiles HTML templates to JavaScript template literals, so the characters that mean something there are
# written as entities too: a prompt is only ever text.
_ENTITIES = {ord(c): f"&#{ord(c)};" for c in "&<>\"'`$\\{}"}


def escape(text: object) -> Markup:
    """Text that means nothing to HTML, to an attribute, or to a JavaScript template literal; ``Markup`` as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(str(text).translate(_ENTITIES))


def source(name: str) -> str:
    """The text of a template; its line breaks and indentation are for its readers alone."""
    return re.sub(r"\n\s*", "", (HERE / name).read_text())


def fill(name: str, values: Mapping[str, object]) -> Markup:
    """A template, named by its path in this folder, with its values."""
    return Markup(_TEMPLATES.get_template(name).render(values))


_TEMPLATES = Environment(loader=FunctionLoader(source), autoescape=True, finalize=escape, undefined=StrictUndefined, auto_reload=False)
