"""The Compare page: one prompt, the same seeds, three models side by side, scored while they denoise."""

from __future__ import annotations

import dataclasses
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from aig import export, schedules
from aig.engine import MAX_IMAGES, MAX_LORA_SCALE, MAX_WAITING, Engine, Request, RunFailed, Stream, Update
from aig.ui import curve, render, views

HERE = Path(__file__).parent
EXAMPLES = (
    "a person with glasses",
    "an avataaars portrait",
    "a robot on a yellow background",
    "a micah portrait with red hair",
    "a sad person with long hair",
    "",
)
DEFAULT = Request(prompt=EXAMPLES[0])
PRESET_LABELS = {"step_0.6": "step 0.6", "sigmoid_12_0.5": "sigmoid", "constant_0.5": "constant", "draft": "tuned"}
# More than the engine's own queue holds, so that a full house is told so instead of waiting in silence.
RUNS = {"concurrency_id": "runs", "concurrency_limit": MAX_WAITING + 8}
QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Streams:
    """The open streams of every browser session, so that Stop and a closed tab can end them at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = Lock()
        self._open: dict[str, set[Stream]] = defaultdict(set)

    def updates(self, wanted: Request, session: str) -> Iterator[Update]:
        """The updates of a new run. It ends with the iteration, however that ends, or when ``close`` is called."""
        stream = self._engine.stream(wanted)
        with self._lock:
            self._open[session].add(stream)
        try:
            yield from stream
        finally:
            stream.close()
            with self._lock:
                self._open[session].discard(stream)
                if not self._open[session]:
                    del self._open[session]

    def close(self, session: str) -> None:
        """End all runs of a session; the model stops within one denoising step."""
        with self._lock:
            streams = tuple(self._open.get(session, ()))
        for stream in streams:
            stream.close()


def build(engine: Engine) -> Callable[[gr.Request], None]:
    """Lay out the page inside the current ``gr.Blocks`` and connect it to the engine.

    Returns what to do when a browser tab closes: end its runs.
    """
    model, streams = engine.model, Streams(engine)

    with gr.Row(elem_id="compare"):
        with gr.Column(elem_id="ask"):
            prompt = gr.Textbox(DEFAULT.prompt, label="Prompt", placeholder="Anything", max_lines=1, elem_id="prompt")
            labels = [text or "anything" for text in EXAMPLES]
            gr.Examples([[text] for text in EXAMPLES], prompt, example_labels=labels, elem_id="examples", api_visibility="private")
            with gr.Row(elem_id="go"):
                run = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False)
        with gr.Column(elem_id="stage"):
            script = (HERE / "compare.js").read_text()
            stage = gr.HTML(render.stage(views.idle(DEFAULT)), js_on_load=script, apply_default_css=False)
        with gr.Column(elem_id="settings"):
            first = curve.draw(DEFAULT.schedule, DEFAULT.steps, DEFAULT.closed, DEFAULT.images, DEFAULT.guidance)
            drawing = gr.HTML(first, apply_default_css=False)
            presets = [(PRESET_LABELS.get(name, name.replace("_", " ")), name) for name in schedules.PRESETS]
            preset = gr.Radio(presets, value=DEFAULT.schedule, label="Annealing schedule", elem_id="preset")
            exponent = gr.Slider(0.25, 8, 2, step=0.25, label="Exponent", buttons=[])
            with gr.Row(elem_classes="pair"):
                schedule = gr.Textbox(DEFAULT.schedule, label="Schedule as text", max_lines=1, elem_id="schedule")
                closed = gr.Checkbox(False, label="End at 1", elem_id="closed")
            lora_scale = gr.Slider(0, MAX_LORA_SCALE, DEFAULT.lora_scale, step=0.05, label="LoRA scale", buttons=[])
            several = len(model.kl) > 1
            kl = gr.Radio(
                [(f"{value:g}", value) for value in model.kl],
                value=model.kl[0],
                label="KL strength in training",
                info=None if several else "This model was tuned at one strength only.",
                interactive=several,
                elem_id="kl",
            )
            with gr.Row(elem_id="seeds"):
                seed = gr.Number(DEFAULT.seed, label="Seed", precision=0)
                dice = gr.Button("Roll a new seed", elem_id="dice")
            with gr.Row(elem_classes="pair"):
                images = gr.Slider(1, MAX_IMAGES, DEFAULT.images, step=1, label="Images", buttons=[])
                steps = gr.Slider(4, 50, DEFAULT.steps, step=1, label="Steps", buttons=[])
            guidance = gr.Slider(1, 10, DEFAULT.guidance, step=0.5, label="Guidance", buttons=[])

    settings = [prompt, seed, images, steps, guidance, schedule, lora_scale, kl, closed]
    reached = gr.State()  # the last stage shown, which Stop leaves standing
    busy = gr.update(interactive=False), gr.update(interactive=True)  # Run, Stop
    ready = gr.update(interactive=True), gr.update(interactive=False)

    def show(view: render.Stage, buttons: tuple[dict, dict]) -> tuple:
        return render.stage(view), view, *buttons

    def compare_live(prompt, seed, images, steps, guidance, schedule, lora_scale, kl, closed, client: gr.Request):
        wanted = Request(
            prompt=prompt,
            seed=seed,
            images=images,
            steps=steps,
            guidance=guidance,
            schedule=schedule,
            lora_scale=lora_scale,
            kl=kl,
            closed=closed,
        )
        view = None
        try:
            for update in streams.updates(wanted, client.session_hash):
                view = views.shown(update, views.unknown(model.unknown_words(wanted.prompt)))
                yield show(view, ready if update.state == "done" else busy)
        except ValueError as refusal:
            raise gr.Error(render.escape(refusal), print_exception=False) from refusal
        except RunFailed as failure:
            if view is None:
                raise gr.Error(render.escape(failure), print_exception=False) from failure
            yield show(views.ended(view, "Failed", str(failure)), ready)
        else:
            if view is not None and view.state != "done":
                yield show(views.ended(view, "Stopped"), ready)

    def stop_all(view: render.Stage | None, client: gr.Request) -> tuple:
        streams.close(client.session_hash)
        return show(views.ended(view, "Stopped"), ready) if view else (gr.skip(), view, *ready)

    def compare(
        prompt: str,
        seed: int,
        images: int,
        steps: int,
        guidance: float,
        schedule: str,
        lora_scale: float,
        kl: float,
        closed: bool,
        client: gr.Request,
    ) -> tuple[dict, str]:
        """Run one comparison of base, reward-tuned and AIG on the same seeds.

        Returns the final scores (rewards, diversity with 95% intervals, Vendi score, open attributes, paired differences
        from base, the summing-up sentence) and one PNG of the three grids, base on the left, AIG on the right.

        Parameters:
            prompt: English, may be empty (unconditional).
            seed: image k of every grid starts from the noise of seed + k.
            images: a column, 1 to 16.
            steps: denoising steps, 1 to 100.
            guidance: classifier-free guidance scale, 0 to 20, off up to 1.
            schedule: share of the tuned model over progress: base, draft, linear, cosine, power_P, step_F, constant_W, sigmoid_K_M or points:x,y;x,y.
            lora_scale: strength of the tuned model, 0 to 1.5.
            kl: KL coefficient the tuned model was trained with, one of those that the page offers.
            closed: end the schedule at 1 instead of one step before.
        """
        wanted = Request(
            prompt=prompt,
            seed=seed,
            images=images,
            steps=steps,
            guidance=guidance,
            schedule=schedule,
            lora_scale=lora_scale,
            kl=kl,
            closed=closed,
        )
        last = None
        try:
            for last in streams.updates(wanted, client.session_hash):
                pass
        except (ValueError, RunFailed) as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        if last is None or last.state != "done":
            raise gr.Error("The run was stopped.", print_exception=False)
        asked, columns = dataclasses.asdict(wanted), last.scores.columns
        png = export.grids(last.images, [c.name for c in columns], [views.caption(c) for c in columns], asked)
        scores = {"request": asked, "rows": last.rows, "seconds": last.seconds, **last.scores.to_json()}
        return scores, save_bytes_to_cache(png, "aig.png", cache_dir=picture.GRADIO_CACHE)

    def presets_of(steps: int = DEFAULT.steps, closed: bool = False) -> dict:
        """The named schedules with their share of the tuned model at every step, and all forms that a schedule may take.

        Parameters:
            steps: denoising steps, 1 to 100.
            closed: end the schedules at 1 instead of one step before.
        """
        try:
            shares = {name: schedules.weights(schedules.parse(name), steps, closed=closed is True) for name in schedules.PRESETS}
        except ValueError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        return {"presets": shares, "forms": schedules.CHOICES}

    # The run. Payloads reach the engine as they came (preprocess=False): it checks them all, and strictly.
    running = gr.on(
        [run.click, prompt.submit],
        compare_live,
        settings,
        [stage, reached, run, stop],
        preprocess=False,
        show_progress="hidden",
        api_visibility="private",
        **RUNS,
    )
    stop.click(stop_all, reached, [stage, reached, run, stop], cancels=[running], **QUICK)

    # The schedule's text is what counts: preset and exponent write it, the preset follows it, and so does the exponent
    # while someone types (not while someone drags it, it would be pulled back).
    preset.input(lambda name: (name, curve.exponent_of(name)), preset, [schedule, exponent], **QUICK)
    exponent.input(lambda power: f"power_{power:g}", exponent, schedule, trigger_mode="always_last", **QUICK)
    schedule.change(curve.preset_of, schedule, preset, **QUICK)
    schedule.input(curve.exponent_of, schedule, exponent, **QUICK)
    drawn = [schedule, steps, closed, images, guidance]
    gr.on([control.change for control in drawn], curve.draw, drawn, drawing, trigger_mode="always_last", **QUICK)
    dice.click(lambda: secrets.randbelow(1_000_000), None, seed, **QUICK)

    scores, picture = gr.JSON(visible=False), gr.Image(visible=False, format="png")
    gr.on([], compare, settings, [scores, picture], preprocess=False, api_name="compare", **RUNS)
    gr.api(presets_of, api_name="schedules")

    def leave(client: gr.Request) -> None:
        streams.close(client.session_hash)

    return leave
