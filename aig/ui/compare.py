"""The Compare page: one prompt, the same seeds, three models side by side, scored while they denoise."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gradio as gr

from aig.engine import MAX_WAITING, Engine
from aig.request import MAX_IMAGES, MAX_LORA_SCALE, Request
from aig.ui import curve, render, views
from aig.ui.runs import Runs, schedules_api

HERE = Path(__file__).parent
EXAMPLES = (
    "a person with glasses",
    "an avataaars portrait",
    "a robot on a yellow background",
    "a micah portrait with red hair",
    "a sad person with long hair",
    "",
)
# Payloads reach the handlers as they came (preprocess=False), because the engine checks them all, and strictly. More
# runs than the engine's own queue holds may enter, so that a full house is told so instead of waiting in silence.
RUN = {"preprocess": False, "concurrency_id": "runs", "concurrency_limit": MAX_WAITING + 8}
QUICK = {"preprocess": False, "queue": False, "show_progress": "hidden", "api_visibility": "private"}


def example(index: object) -> str | dict:
    """The prompt of the example that was clicked."""
    known = isinstance(index, int) and 0 <= index < len(EXAMPLES)
    return EXAMPLES[index] if known else gr.skip()


def build(engine: Engine) -> Callable[[gr.Request], None]:
    """Lay out the page inside the current ``gr.Blocks`` and connect it to the engine.

    Returns what to do when a browser tab closes: end its runs.
    """
    model, runs = engine.model, Runs(engine)
    default = Request(prompt=EXAMPLES[0], kl=model.kl[0])

    with gr.Row(elem_id="compare"):
        with gr.Column(elem_id="ask"):
            prompt = gr.Textbox(default.prompt, label="Prompt", placeholder="Anything", max_lines=1, elem_id="prompt")
            examples = gr.Dataset(
                components=[prompt],
                samples=[[text] for text in EXAMPLES],
                sample_labels=[text or "anything" for text in EXAMPLES],
                show_label=False,
                elem_id="examples",
            )
            with gr.Row(elem_id="go"):
                run = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False)
        with gr.Column(elem_id="stage"):
            script = (HERE / "compare.js").read_text()
            stage = gr.HTML(render.stage(views.idle(default)), js_on_load=script, apply_default_css=False)
            viewer = (HERE / "viewer.js").read_text()
            gr.HTML((HERE / "viewer.html").read_text(), js_on_load=viewer, apply_default_css=False, elem_id="viewer")
        with gr.Column(elem_id="settings"):
            with gr.Column(elem_id="annealing"):
                schedule = curve.editor(model, default)
                closed = gr.Checkbox(default.closed, label="End at 1", elem_id="closed", container=False)
            lora_scale = gr.Slider(0, MAX_LORA_SCALE, default.lora_scale, step=0.05, label="LoRA scale", buttons=[])
            several = len(model.kl) > 1
            kl = gr.Radio(
                [(f"{value:g}", value) for value in model.kl],
                value=default.kl,
                label="KL strength in training",
                info=None if several else "This model was tuned at one strength only.",
                interactive=several,
                elem_id="kl",
            )
            with gr.Row(elem_id="seeds"):
                seed = gr.Number(default.seed, label="Seed", precision=0)
                dice = gr.Button("Roll a new seed", elem_id="dice")
            with gr.Row(elem_classes="pair"):
                images = gr.Slider(1, MAX_IMAGES, default.images, step=1, precision=0, label="Images", buttons=[])
                steps = gr.Slider(4, 50, default.steps, step=1, precision=0, label="Steps", buttons=[])
            guidance = gr.Slider(1, 10, default.guidance, step=0.5, label="Guidance", buttons=[])

    settings = [prompt, seed, images, steps, guidance, schedule, lora_scale, kl, closed]  # the order of runs.FIELDS
    reached = gr.State()  # the last stage shown, which Stop leaves standing
    shown = [stage, reached, run, stop]
    running = gr.on(
        [run.click, prompt.submit], runs.live, settings, shown, show_progress="hidden", api_visibility="private", **RUN
    )
    # "Run on change": what the session still runs ends first. Without this trigger_mode a curve let go meanwhile
    # would be dropped.
    rerunning = schedule.submit(
        runs.again, settings, shown, show_progress="hidden", api_visibility="private", trigger_mode="multiple", **RUN
    )
    ending = QUICK | {"preprocess": True}  # it fetches the state
    stop.click(runs.stop, reached, shown, cancels=[running, rerunning], **ending)
    examples.click(example, examples, prompt, **QUICK)
    dice.click(lambda: secrets.randbelow(1_000_000), None, seed, **QUICK)

    def described(text: str, steps: int, closed: bool, images: int, guidance: float) -> dict:
        asked = replace(default, schedule=text, steps=steps, closed=closed, images=images, guidance=guidance)
        return gr.update(facts=curve.facts(model, asked))

    drawn = [schedule, steps, closed, images, guidance]
    gr.on([control.change for control in drawn], described, drawn, schedule, trigger_mode="always_last", **QUICK)

    scores, picture = gr.JSON(label="scores", visible=False), gr.Image(label="grids", format="png", visible=False)
    gr.on([], runs.compare, settings, [scores, picture], api_name="compare", **RUN)
    gr.api(schedules_api, api_name="schedules")
    return runs.leave
