"""AIG Explorer: ``python app.py``, and the entry point of a Hugging Face Space."""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence

# Before gradio, diffusers and huggingface_hub are imported: no analytics, no downloads, no code from model folders.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
if "GRADIO_TEMP_DIR" not in os.environ:  # the API's pictures: a folder of ours alone, gone with this process
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="aig-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

from aig.machine import cores  # noqa: E402

cores.settle()  # before torch is loaded

import gradio as gr  # noqa: E402

from aig.portraits import serving  # noqa: E402
from aig.published import offers  # noqa: E402
from aig.runs import replay, zerogpu  # noqa: E402
from aig.runs.comparison import Update  # noqa: E402
from aig.runs.engine import Engine  # noqa: E402
from aig.runs.facts import Facts  # noqa: E402
from aig.ui.compare import page  # noqa: E402
from aig.ui.shell import front, theme  # noqa: E402

DAY = 86_400  # seconds

LAUNCH = {
    "max_file_size": "1mb",  # the app takes no uploads at all; this bounds what the upload route accepts
    "show_error": False,  # only messages meant for people (gr.Error) reach the page, never a traceback's text
    "enable_monitoring": False,  # the monitoring page would show other people's requests
    "allowed_paths": [],  # only files that this app made are served
    "state_session_capacity": 200,  # a session keeps its last stage, under 1 MB
    "run_history": False,  # prompts are not recorded, in no browser either
    "footer_links": ["api"],  # the named endpoints are documented there
    "ssr_mode": False,  # one Python process, no Node server beside it
    "pwa": False,  # nothing to install
}


def build(
    engine: Engine, recordings: Sequence[Sequence[Update]] = (), offered: Sequence[Facts] = (), *, allow_own: bool = False
) -> gr.Blocks:
    """The whole app around a running engine, not launched yet; its page opens on the first recorded run, if there is one.

    offered: the models that can be chosen beside the engine's first. allow_own: whether visitors may name models of their own.
    """
    with gr.Blocks(
        title="AIG Explorer",
        fill_width=True,
        delete_cache=(DAY // 24, DAY),  # the API's pictures: looked at every hour, deleted when a day old
        analytics_enabled=False,  # nobody is counted
    ) as app:
        theme.masthead()
        app.unload(page.build(engine, app, recordings, offered, allow_own=allow_own))
    # A bounded queue, and no way around it: api_open would let REST calls skip it.
    return app.queue(max_size=64, api_open=False, default_concurrency_limit=8)


def launching() -> dict:
    """What ``launch`` is told, whoever calls it; made anew for every call, because Gradio writes into it."""
    return LAUNCH | {"theme": theme.theme(), "head": theme.head(), "app_kwargs": {"routes": [front.route()]}}


def recorded(facts: Facts) -> list[tuple[Update, ...]]:
    """The runs of the page's examples, as far as they are recorded; with a line in the log for one that does not fit the model."""
    found = []
    for place in map(replay.place, replay.EXAMPLES):
        try:
            found += [replay.load(place, facts)] if place.exists() else []
        except ValueError as problem:
            print(f"aig: {problem}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    on_space = "SPACE_ID" in os.environ
    parser.add_argument("--host", default="0.0.0.0" if on_space else "127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--mcp", action="store_true", help="offer the named endpoints as MCP tools too")
    parser.add_argument(
        "--presets",
        default=os.environ.get("AIG_PRESETS"),
        help="published models to offer, such as sd15,sdxl, or all, or none; by default those that fit into the GPU's memory",
    )
    parser.add_argument(
        "--own",
        action="store_true",
        default=os.environ.get("AIG_OWN") == "1",
        help="let visitors name models of their own: downloads take this machine's disk",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        default=os.environ.get("AIG_COMPILE") == "1",
        help="compile the attention blocks of published models: a slow first run; needs Triton or a C++ compiler. With a fused "
        "LoRA, its scales between 0 and 1 stay uncompiled",
    )
    arguments = parser.parse_args()
    if arguments.mcp and importlib.util.find_spec("mcp") is None:
        parser.exit(2, "aig: --mcp needs the package mcp, which is not installed: pip install 'gradio[mcp]'\n")
    try:
        names = offers.chosen(arguments.presets)
        find = offers.finder(names, own=arguments.own, backend="inductor" if arguments.compile else None)
        engine = Engine(zerogpu.early(serving.load), find)
        app = build(engine, recorded(engine.facts()), [find(name).facts for name in names], allow_own=arguments.own)
    except ValueError as problem:  # an asset is missing or broken, or there is no such preset
        parser.exit(2, f"aig: {problem}\n")
    app.launch(server_name=arguments.host, server_port=arguments.port, mcp_server=arguments.mcp, **launching())


if __name__ == "__main__":
    main()
