"""The Compare page: one prompt, the same seeds, three models side by side, scored while they denoise."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from aig.runs import replay
from aig.runs.columns import MAX_EXTRA
from aig.runs.comparison import Update
from aig.runs.engine import MAX_WAITING, Engine
from aig.runs.facts import Facts
from aig.runs.plan import Plan
from aig.runs.request import MAX_IMAGES, MAX_LORA_SCALE, Request
from aig.ui import api
from aig.ui.compare import added, controls, own, views
from aig.ui.compare.answers import Answers
from aig.ui.compare.controls import FIELDS
from aig.ui.compare.runs import Runs
from aig.ui.markup import source
from aig.ui.parts import curve
from aig.ui.parts.stage import Stage, stage
from aig.ui.shell import front

# Payloads reach the handlers as they came (preprocess=False), because the engine checks them all, and strictly. More
# runs than the engine's own queue holds may enter, so that a full house is told so instead of waiting in silence.
RUN: dict[str, Any] = {"preprocess": False, "concurrency_id": "runs", "concurrency_limit": MAX_WAITING + 8}
LIVE: dict[str, Any] = RUN | {"show_progress": "hidden", "api_visibility": "private"}
QUICK: dict[str, Any] = {"preprocess": False, "queue": False, "show_progress": "hidden", "api_visibility": "private"}
STATEFUL: dict[str, Any] = QUICK | {"preprocess": True}  # gr.State is fetched for these
QUEUED: dict[str, Any] = QUICK | {"queue": True}  # only queued handlers have their refusals shown


def build(
    engine: Engine, app: gr.Blocks, recordings: Sequence[Sequence[Update]] = (), offered: Sequence[Facts] = (), *, allow_own: bool = False
) -> Callable[[gr.Request], None]:
    """Lay out the page inside the current ``gr.Blocks`` and connect it to the engine; it opens on the first recorded run.

    offered: the models that can be chosen beside the engine's first. allow_own: whether visitors may name models of their own.
    Returns what to do when a browser tab closes: end its runs.
    """
    facts = engine.facts()
    default = replay.opening(facts)
    titles = [(facts.title, default.model), *((other.title, other.name) for other in offered)]
    runs = Runs(engine, recordings, titles)
    first = runs.first[0] if runs.first else views.idle(Plan.of(default, facts))

    with gr.Row(elem_id="compare"):
        ask, show = _ask(default), _show(first)
        panel = _panel(facts, default, titles, allow_own=allow_own)
    fields = {"prompt": ask.prompt, **panel.fields}
    settings = [fields[name] for name in FIELDS]

    _connect_runs(runs, ask, show, panel, settings)
    _connect_relay(runs, app, show, settings)
    _connect_answers(Answers(engine, titles), panel, settings)
    _publish(runs, engine, offered, settings)
    return runs.leave


# --- the layout: three columns, which a phone stacks ---


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What to draw."""

    prompt: gr.Textbox
    examples: gr.Dataset
    run: gr.Button
    stop: gr.Button


@dataclass(frozen=True, kw_only=True)
class Show:
    """What is shown of a run, and the line through which the page is told of everything else."""

    stage: gr.HTML
    relay: gr.HTML
    reached: gr.State  # the last stage shown, which Stop leaves standing


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The settings."""

    fields: dict[str, Any]  # components of all of a request but the prompt; which events one has, Gradio does not declare
    note: gr.HTML  # on the added columns
    dice: gr.Button
    lock: gr.Checkbox
    own: list[Component]  # the form for a model of one's own
    use: gr.Button


def _ask(default: Request) -> Ask:
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
    return Ask(prompt=prompt, examples=examples, run=run, stop=stop)


def _show(first: Stage) -> Show:
    with gr.Column(elem_id="stage"):
        shown = front.part("stage", stage(first))
        relay = front.part("relay", {}, template=source("parts/relay.html"), elem_id="relay")
        front.part("viewer", source("parts/viewer.html"), elem_id="viewer")
    return Show(stage=shown, relay=relay, reached=gr.State())


def _panel(facts: Facts, default: Request, titles: Sequence[tuple[str, str]], *, allow_own: bool) -> Panel:
    with gr.Column(elem_id="settings"):
        fields: dict[str, Component] = {}
        fields["model"] = gr.Dropdown(label="Model", elem_id="model", **controls.models(facts, default.model, titles))
        form, use = own.form(visible=allow_own)
        with gr.Column(elem_id="annealing"):
            fields["schedule"] = curve.editor(facts, default)
            fields["closed"] = gr.Checkbox(default.closed, label="End at 1", elem_id="closed", container=False)
        fields["tuning"] = gr.Radio(label="Tuned on", elem_id="tuning", **controls.tunings(facts, default.tuning))
        fields["lora_scale"] = gr.Slider(0, MAX_LORA_SCALE, default.lora_scale, step=0.05, label="LoRA scale", buttons=[])
        fields["kl"] = gr.Radio(label="KL strength in training", elem_id="kl", **controls.strengths(facts, default.tuning))
        fields["columns"] = gr.Dropdown(
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
            fields["seed"] = gr.Number(default.seed, label="Seed", precision=0)
            dice = gr.Button("Roll a new seed", elem_id="dice")
            lock = gr.Checkbox(True, label="Lock", elem_id="lock", container=False)
        with gr.Row(elem_classes="pair"):
            fields["images"] = gr.Slider(1, MAX_IMAGES, default.images, step=1, precision=0, label="Images", buttons=[])
            fields["steps"] = gr.Slider(1, 50, default.steps, step=1, precision=0, label="Steps", buttons=[])
        fields["guidance"] = gr.Slider(0, 10, default.guidance, step=0.5, label="Guidance", buttons=[])
    return Panel(fields=fields, note=note, dice=dice, lock=lock, own=form, use=use)


# --- the events ---


def roll() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(1_000_000)


def reseeded(locked: object) -> int | dict:
    """The seed of the next run: a new one, unless it is locked."""
    return gr.skip() if locked is not False else roll()


def _connect_runs(runs: Runs, ask: Ask, show: Show, panel: Panel, settings: list[Component]) -> None:
    """Run, run on change, Stop, the examples and the dice."""
    shown = [show.stage, show.reached, ask.run, ask.stop]
    seed, schedule = panel.fields["seed"], panel.fields["schedule"]
    asking = gr.on([ask.run.click, ask.prompt.submit], reseeded, panel.lock, seed, **QUICK)
    running = asking.then(runs.live, settings, shown, **LIVE)
    # "Run on change": what the session still runs ends first. Without this trigger_mode a curve let go meanwhile
    # would be dropped.
    rerunning = schedule.submit(runs.again, settings, shown, trigger_mode="multiple", **LIVE)
    ask.stop.click(runs.stop, show.reached, shown, cancels=[running, rerunning], **STATEFUL)
    ask.examples.click(runs.example, [ask.examples, *settings], [ask.prompt, show.relay, show.reached], **QUICK)
    panel.dice.click(roll, None, seed, **QUICK)


def _connect_relay(runs: Runs, app: gr.Blocks, show: Show, settings: list[Component]) -> None:
    """Links and pictures."""
    app.load(runs.opened, None, [show.stage, show.relay, *settings], **QUICK)
    show.relay.submit(runs.dropped, None, [show.relay, *settings], **QUICK)
    show.stage.submit(runs.picture, show.reached, show.relay, **STATEFUL)


def _connect_answers(answers: Answers, panel: Panel, settings: list[Component]) -> None:
    """What controls become when others change."""
    fields = panel.fields
    panel.use.click(answers.named, panel.own, settings, **QUEUED)
    fields["tuning"].input(answers.retuned, [fields["model"], fields["tuning"]], [fields["kl"], fields["tuning"]], **QUICK)
    fields["model"].input(answers.switched, fields["model"], settings, **QUICK)
    changes = [control.change for name, control in fields.items() if name != "seed"]
    gr.on(changes, answers.described, settings, [fields["schedule"], panel.note], trigger_mode="always_last", **QUICK)


def _publish(runs: Runs, engine: Engine, offered: Sequence[Facts], settings: list[Component]) -> None:
    """The endpoints that have names."""
    scores, picture = gr.JSON(label="scores", visible=False), gr.Image(label="grids", format="png", visible=False)
    gr.on([], runs.compare, settings, [scores, picture], api_name="compare", **RUN)
    for name, listing in api.listings(engine, offered).items():
        gr.api(listing, api_name=name)
