"""The Compare page: one prompt, the same seeds, three models side by side, scored while they denoise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import gradio as gr

from aig import schedules
from aig.engine import Engine, Request, Update
from aig.ui import render, views

HERE = Path(__file__).parent
EXAMPLES = (
    "a person with glasses",
    "an avataaars portrait",
    "a robot on a yellow background",
    "a micah portrait with red hair",
    "a sad person with long hair",
    "",
)
PRESET_LABELS = {"step_0.6": "step 0.6", "sigmoid_12_0.5": "sigmoid", "constant_0.5": "constant", "draft": "tuned"}
MAX_TEXT = 2_000  # characters of a schedule worth parsing
RUNS_AT_ONCE = 16  # streams that may wait for the model's one worker; each holds a thread


class Streams:
    """The open streams of every browser session, so that Stop and a closed tab can end them at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[str, set] = defaultdict(set)

    def add(self, session: str, stream: Iterator[Update]) -> None:
        with self._lock:
            self._open[session].add(stream)

    def discard(self, session: str, stream: Iterator[Update]) -> None:
        with self._lock:
            self._open[session].discard(stream)
            if not self._open[session]:
                del self._open[session]

    def close(self, session: str) -> None:
        """End all streams of a session; the model stops within one denoising step."""
        with self._lock:
            streams = self._open.pop(session, set())
        for stream in streams:
            stream.close()


def cost(shares: tuple[float, ...], images: int, guidance: float) -> int:
    """Model rows of a run with columns base, tuned and AIG: what has not parted yet is computed once (``aig.guidance``)."""
    rows, like_base, like_tuned = 0, True, True
    for g in shares:
        rows += 2 + (g != 1 and not like_base) + (g != 0 and not like_tuned)
        like_base, like_tuned = like_base and g == 0, like_tuned and g == 1
    return rows * images * (2 if guidance > 1 else 1)


def draw_curve(text: str, steps: int, closed: bool, images: int, guidance: float) -> str:
    """The curve as an SVG figure, or the empty axes with the reason."""
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"A schedule may be {MAX_TEXT} characters long, this one has {len(text)}.")
        schedule = schedules.parse(text)
        rows = cost(schedules.weights(schedule, steps, closed=closed), images, guidance)
        return render.curve(schedule, steps, closed=closed, cost=f"{rows:,} model rows")
    except ValueError as problem:
        return render.no_curve(str(problem))


def controls_of(text: str) -> tuple[str | None, float]:
    """The preset and the exponent that a schedule text stands for; None where it is no preset."""
    try:
        name = schedules.parse(text[:MAX_TEXT]).name
    except ValueError:
        return None, gr.skip()
    family, _, number = name.partition("_")
    exponent = float(number) if family == "power" else 1.0 if family == "linear" else gr.skip()
    return name if name in schedules.PRESETS else None, exponent


def build(engine: Engine) -> Streams:
    """Lay out the page inside the current ``gr.Blocks`` and connect it to the engine.

    Returns the open streams, so that the app can end those of a closed tab.
    """
    model = engine.model
    streams = Streams()
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    with gr.Row(elem_id="compare"):
        with gr.Column(elem_id="ask"):
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", placeholder="Anything", lines=2, max_lines=3, elem_id="prompt")
            gr.Examples(
                [[text] for text in EXAMPLES],
                prompt,
                example_labels=[text or "anything" for text in EXAMPLES],
                label="Examples",
                elem_id="examples",
            )
            with gr.Row(elem_id="go"):
                run = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False)
        with gr.Column(elem_id="stage"):
            stage = gr.HTML(
                render.stage(views.idle(model, 9)),
                js_on_load=(HERE / "compare.js").read_text(),
                apply_default_css=False,
                elem_id="view",
            )
        with gr.Column(elem_id="settings"):
            curve = gr.HTML(draw_curve("power_2", 16, False, 9, 4.0), apply_default_css=False, elem_id="curve")
            preset = gr.Radio(
                [(PRESET_LABELS.get(name, name.replace("_", " ")), name) for name in schedules.PRESETS],
                value="power_2",
                label="Annealing schedule",
                elem_id="preset",
            )
            exponent = gr.Slider(0.25, 8, 2, step=0.25, label="Exponent")
            with gr.Row(elem_classes="pair"):
                schedule = gr.Textbox("power_2", label="Schedule as text", max_lines=1, elem_id="schedule")
                closed = gr.Checkbox(False, label="End at 1", elem_id="closed")
            scale = gr.Slider(0, 1.5, 1, step=0.05, label="LoRA scale")
            kl = gr.Radio(
                [(f"{value:g}", value) for value in model.kl],
                value=model.kl[0],
                label="KL strength in training",
                info=None if len(model.kl) > 1 else "This model has one tuned LoRA only.",
                interactive=len(model.kl) > 1,
                elem_id="kl",
            )
            with gr.Row(elem_id="seeds"):
                seed = gr.Number(7, label="Seed", precision=0, minimum=0)
                dice = gr.Button("Roll a new seed", elem_id="dice")
            with gr.Row(elem_classes="pair"):
                images = gr.Slider(1, 16, 9, step=1, label="Images")
                steps = gr.Slider(4, 50, 16, step=1, label="Steps")
            guidance = gr.Slider(1, 10, 4, step=0.5, label="Guidance")
    return streams
