"""The Compare page: one prompt, the same seeds, three models side by side, scored while they denoise."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gradio as gr

from aig import replay
from aig.columns import MAX_EXTRA
from aig.engine import MAX_WAITING, Engine, Update
from aig.facts import Facts
from aig.plan import Plan
from aig.published import offers
from aig.request import MAX_IMAGES, MAX_LORA_SCALE
from aig.ui import added, api, controls, curve, own, render, views
from aig.ui.controls import request_of
from aig.ui.runs import Runs

HERE = Path(__file__).parent
# Payloads reach the handlers as they came (preprocess=False), because the engine checks them all, and strictly. More
# runs than the engine's own queue holds may enter, so that a full house is told so instead of waiting in silence.
RUN = {"preprocess": False, "concurrency_id": "runs", "concurrency_limit": MAX_WAITING + 8}
QUICK = {"preprocess": False, "queue": False, "show_progress": "hidden", "api_visibility": "private"}


def roll() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(1_000_000)


def reseeded(locked: object) -> int | dict:
    """The seed of the next run: a new one, unless it is locked."""
    return gr.skip() if locked is not False else roll()


def build(
    engine: Engine, app: gr.Blocks, recordings: Sequence[Sequence[Update]] = (), offered: Sequence[Facts] = (), *, allow_own: bool = False
) -> Callable[[gr.Request], None]:
    """Lay out the page inside the current ``gr.Blocks`` and connect it to the engine; it opens on the first recorded run.

    offered: the models that can be chosen beside the engine's first. allow_own: whether visitors may name models of their own.
    Returns what to do when a browser tab closes: end its runs.
    """
    facts = engine.facts()
    default = replay.opening(facts.tunings)
    titles = [(facts.title, default.model), *((other.title, other.name) for other in offered)]
    runs = Runs(engine, recordings, titles)
    first = runs.first[0] if runs.first else views.idle(Plan.of(default, facts))

    with gr.Row(elem_id="compare"):
        with gr.Column(elem_id="ask"):
            prompt = gr.Textbox(default.prompt, label="Prompt", placeholder="Anything", max_lines=1, elem_id="prompt")
            examples = gr.Dataset(
                components=[prompt],
                samples=[[text] for text in replay.EXAMPLES],
                sample_labels=[text or "anything" for text in replay.EXAMPLES],
                show_label=False,
                elem_id="examples",
            )
            with gr.Row(elem_id="go"):
                run = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False)
        with gr.Column(elem_id="stage"):
            script = (HERE / "compare.js").read_text()
            stage = gr.HTML(render.stage(first), js_on_load=script, apply_default_css=False)
            relay = gr.HTML({}, html_template=(HERE / "share.html").read_text(), js_on_load=(HERE / "share.js").read_text(),
                            apply_default_css=False, elem_id="relay")
            viewer = (HERE / "viewer.js").read_text()
            gr.HTML((HERE / "viewer.html").read_text(), js_on_load=viewer, apply_default_css=False, elem_id="viewer")
        with gr.Column(elem_id="settings"):
            model = gr.Dropdown(label="Model", elem_id="model", **controls.models(facts, default.model, titles))
            fields, use = own.form(visible=allow_own)
            with gr.Column(elem_id="annealing"):
                schedule = curve.editor(facts, default)
                closed = gr.Checkbox(default.closed, label="End at 1", elem_id="closed", container=False)
            tuning = gr.Radio(label="Tuned on", elem_id="tuning", **controls.tunings(facts, default.tuning))
            lora_scale = gr.Slider(0, MAX_LORA_SCALE, default.lora_scale, step=0.05, label="LoRA scale", buttons=[])
            kl = gr.Radio(label="KL strength in training", elem_id="kl", **controls.strengths(facts, default.tuning))
            columns = gr.Dropdown(
                **controls.columns(facts, default),
                multiselect=True,
                max_choices=MAX_EXTRA,
                allow_custom_value=True,
                label="Add columns",
                info=added.HINT,
                elem_id="columns",
            )
            note = gr.HTML(apply_default_css=False, elem_id="added")
            with gr.Row(elem_id="seeds"):
                seed = gr.Number(default.seed, label="Seed", precision=0)
                dice = gr.Button("Roll a new seed", elem_id="dice")
                lock = gr.Checkbox(True, label="Lock", elem_id="lock", container=False)
            with gr.Row(elem_classes="pair"):
                images = gr.Slider(1, MAX_IMAGES, default.images, step=1, precision=0, label="Images", buttons=[])
                steps = gr.Slider(1, 50, default.steps, step=1, precision=0, label="Steps", buttons=[])
            guidance = gr.Slider(0, 10, default.guidance, step=0.5, label="Guidance", buttons=[])

    settings = [prompt, seed, images, steps, guidance, schedule, tuning, lora_scale, kl, closed, columns, model]
    reached = gr.State()  # the last stage shown, which Stop leaves standing
    shown = [stage, reached, run, stop]
    asking = gr.on([run.click, prompt.submit], reseeded, lock, seed, **QUICK)
    running = asking.then(runs.live, settings, shown, show_progress="hidden", api_visibility="private", **RUN)
    # "Run on change": what the session still runs ends first. Without this trigger_mode a curve let go meanwhile
    # would be dropped.
    rerunning = schedule.submit(
        runs.again, settings, shown, show_progress="hidden", api_visibility="private", trigger_mode="multiple", **RUN
    )
    ending = QUICK | {"preprocess": True}  # it fetches the state
    stop.click(runs.stop, reached, shown, cancels=[running, rerunning], **ending)
    examples.click(runs.example, [examples, *settings], [prompt, relay, reached], **QUICK)
    dice.click(roll, None, seed, **QUICK)

    # Links and pictures: what the page is told goes through ``relay``.
    app.load(runs.opened, None, [stage, relay, *settings], **QUICK)
    relay.submit(runs.dropped, None, [relay, *settings], **QUICK)
    stage.submit(runs.picture, reached, relay, **QUICK | {"preprocess": True})

    def retuned(name: object, tuning: object) -> tuple[dict, dict]:
        note = offer(name).notes.get(tuning if isinstance(tuning, str) else "")
        return gr.update(**controls.strengths(offer(name), tuning)), gr.update(info=note)

    def switched(name: object) -> list[dict]:
        chosen = controls.settings(offer(name), controls.settled(offer(name), name), titles)
        kept = {"prompt", "seed", "images", "schedule", "lora_scale"} - set(offer(name).defaults)
        return [gr.skip() if field in kept else gr.update(**chosen[field]) for field in controls.FIELDS]

    def offer(name: object) -> Facts:
        try:
            return engine.facts(name)
        except ValueError as problem:
            raise gr.Error(render.escape(problem), print_exception=False) from problem

    def named(*form: object) -> list[dict]:
        try:
            name = offers.own_name(form)
        except ValueError as problem:
            raise gr.Error(render.escape(problem), print_exception=False) from problem
        return switched(name)

    use.click(named, fields, settings, **QUICK | {"queue": True})  # only queued handlers have their refusals shown
    tuning.input(retuned, [model, tuning], [kl, tuning], **QUICK)
    model.input(switched, model, settings, **QUICK)

    def described(*values: object) -> tuple[dict, str]:
        asked = replace(request_of(*values), prompt="", seed=default.seed)  # which change neither curve nor cost
        chosen = offer(asked.model)
        return gr.update(facts=curve.facts(chosen, asked)), added.note(chosen, asked)

    changes = [control.change for control in settings if control not in (prompt, seed)]
    gr.on(changes, described, settings, [schedule, note], trigger_mode="always_last", **QUICK)

    scores, picture = gr.JSON(label="scores", visible=False), gr.Image(label="grids", format="png", visible=False)
    gr.on([], runs.compare, settings, [scores, picture], api_name="compare", **RUN)
    for name, listing in api.listings(engine, offered).items():
        gr.api(listing, api_name=name)
    return runs.leave
