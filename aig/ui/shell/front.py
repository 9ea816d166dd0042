"""How the page's JavaScript reaches the browser: modules under an address that names their content, and parts that ask for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parents[1]
ENTRY = "compare/page.js"  # the module that knows the parts of the page
ON_LOAD = FOLDER / "shell" / "on_load.js"  # no module: Gradio runs its text
MODULES = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in sorted(FOLDER.rglob("*.js")) if path != ON_LOAD}
_CONTENT = b"".join(name.encode() + b"\0" + content + b"\0" for name, content in MODULES.items())
# Relative to the page, as Gradio's own scripts are, so that it holds wherever a proxy puts the page.
PLACE = f"front/{hashlib.sha256(_CONTENT).hexdigest()[:16]}"
HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def route() -> Route:
    """The route of the modules, for ``launch``; it knows no other file."""

    async def module(request: Request) -> Response:
        content = MODULES.get(request.path_params["name"])
        if content is None:
            return Response("Not found", 404)
        return Response(content, media_type="text/javascript", headers=HEADERS)

    return Route(f"/{PLACE}/{{name:path}}", module)


def part(
    name: str, value: Any, *, template: str = "${value}", elem_id: str | None = None, props: Mapping[str, Any] | None = None
) -> gr.HTML:
    """A part of the page inside Gradio; ``compare/page.js`` says what its name stands for.

    template: the HTML around the value, or the whole of it. props: what else the part is told, by name.
    """
    return gr.HTML(
        value,
        html_template=template,
        js_on_load=ON_LOAD.read_text(),
        apply_default_css=False,
        elem_id=elem_id,
        part=name,
        place=PLACE,
        **(props or {}),
    )
