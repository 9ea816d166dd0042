"""The runs behind the Compare page: for the page a stream of stages, for the API one answer, for both a way to stop."""

from __future__ import annotations

import base64
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from threading import Lock

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from aig.runs import export, links, replay
from aig.runs.comparison import Update
from aig.runs.engine import Engine, RunFailed
from aig.runs.jobs import Stream
from aig.runs.plan import Plan
from aig.runs.request import Request
from aig.ui.compare import controls, views
from aig.ui.compare.controls import FIELDS, refused, request_of
from aig.ui.parts.stage import Stage, Trace, stage

# What the Run and the Stop button are while a run goes on, and otherwise.
BUSY = gr.update(interactive=False), gr.update(interactive=True)
READY = gr.update(interactive=True), gr.update(interactive=False)


def frames(views: Sequence[Stage]) -> list[str]:
    """The HTML of stages, for the player."""
    return [stage(view) for view in views]


class Runs:
    """The open streams of every session, which Stop and a closed tab end, and the handlers that open them."""

    def __init__(self, engine: Engine, recordings: Sequence[Sequence[Update]], titles: Sequence[tuple[str, str]]) -> None:
        self._engine, self._titles = engine, titles
        self._recorded = [(updates[0].plan.request, views.replayed(updates)) for updates in recordings]
        self.first = self._recorded[0][1] if recordings else []  # what the page opens on
        self._lock = Lock()
        self._open: dict[str | None, set[Stream]] = defaultdict(set)

    def updates(self, request: Request, session: str | None) -> Iterator[Update]:
        """The updates of a new run. It ends with the iteration, however that ends, or with ``leave``."""
        stream = self._engine.stream(request, session)
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

    def leave(self, client: gr.Request) -> None:
        """End all runs of a session; the model stops within one denoising step."""
        with self._lock:
            streams = tuple(self._open.get(client.session_hash, ()))
        for stream in streams:
            stream.close()

    def live(self, client: gr.Request, *settings: object) -> Iterator[tuple]:
        """For the page, at every update: the stage as HTML, the stage itself, the Run and the Stop button."""
        request, view, trace = request_of(*settings), None, Trace()
        try:
            for update in self.updates(request, client.session_hash):
                trace = views.longer(trace, update)
                view = views.shown(update, views.unknown(update.plan.facts.unknown_words(request.prompt)), trace)
                yield stage(view), view, *(READY if update.state == "done" else BUSY)
        except ValueError as refusal:
            raise refused(refusal) from refusal
        except RunFailed as failure:
            if view is None:
                raise refused(failure) from failure
            view = views.ended(view, "Failed", str(failure))
            yield stage(view), view, *READY
        else:
            if view is not None and view.state != "done":
                view = views.ended(view, "Stopped")
                yield stage(view), view, *READY

    def again(self, client: gr.Request, *settings: object) -> Iterator[tuple]:
        """Like ``live``, but ends what the session still runs."""
        self.leave(client)
        yield from self.live(client, *settings)

    def stop(self, view: Stage | None, client: gr.Request) -> tuple:
        """For the page: end the session's runs and leave the last stage standing."""
        self.leave(client)
        if view is None or view.state == "done":
            return gr.skip(), view, *READY
        view = views.ended(view, "Stopped")
        return stage(view), view, *READY

    def opened(self, client: gr.Request) -> tuple:
        """When the page opens: the stage, what to tell the page, and the settings of the link that it came by.

        Without a link, or with a bad one, the recorded run is sent to be replayed.
        """
        text = client.query_params.get("run")
        nothing = [gr.skip()] * len(FIELDS)
        if text is None:
            return gr.skip(), {"frames": frames(self.first)}, *nothing
        try:
            plan = self._decoded(text)
        except ValueError as problem:
            return (
                gr.skip(),
                {"frames": frames(self.first), "bad": f"This link cannot be used, so the page shows its defaults. {problem}"},
                *nothing,
            )
        return stage(views.idle(plan)), {"frames": []}, *self._updates(plan)

    def example(self, index: object, client: gr.Request, *settings: object) -> tuple:
        """For the example that was clicked: its prompt, and if it was recorded with the settings as they are, and no run goes on, its
        recorded run and that run's last stage."""
        if not isinstance(index, int) or not 0 <= index < len(replay.EXAMPLES):
            return gr.skip(), gr.skip(), gr.skip()
        prompt = replay.EXAMPLES[index]
        asked = dataclasses.replace(request_of(*settings), prompt=prompt)
        stages = next((stages for request, stages in self._recorded if request == asked), [])
        if not stages or client.session_hash in self._open:
            return prompt, gr.skip(), gr.skip()
        return prompt, {"frames": frames(stages), "example": True}, stages[-1]

    def dropped(self, found: gr.EventData) -> tuple:
        """For the settings found in a picture (``restore`` of the event): what to tell the page, and the settings."""
        try:
            plan = self._decoded(getattr(found, "restore", None))
        except ValueError as problem:
            return {"bad": str(problem)}, *[gr.skip()] * len(FIELDS)
        return {"good": "The settings of the picture are restored. Press Run."}, *self._updates(plan)

    def picture(self, view: Stage | None) -> dict:
        """For the page: the stage as a labelled picture with the settings inside."""
        view = view or (self.first[-1] if self.first else None)
        if view is None or not all(column.picture for column in view.columns):
            return {"bad": "There is no picture to save yet: press Run."}
        png = base64.b64encode(views.picture(view)).decode()
        return {"picture": f"data:image/png;base64,{png}", "name": f"aig-seed-{view.seed}.png"}

    def _updates(self, plan: Plan) -> list[dict]:
        """The updates of all controls for a plan's request."""
        settings = controls.settings(plan.facts, plan.request, self._titles)
        return [gr.update(**settings[name]) for name in FIELDS]

    def _decoded(self, text: object) -> Plan:
        """The plan of a link; ValueError when it has none."""
        request = links.decode(text)
        return Plan.of(request, self._engine.facts(request.model))

    def compare(
        self,
        prompt: str,
        seed: int,
        images: int,
        steps: int,
        guidance: float,
        schedule: str,
        tuning: str,
        lora_scale: float,
        kl: float,
        closed: bool,
        columns: list[str],
        model: str,
        client: gr.Request,
    ) -> tuple[dict, str]:
        """Run one comparison of base, reward-tuned, AIG and the added columns on the same seeds.

        Answers with the final scores (rewards, diversity with 95% intervals, Vendi score, open attributes, paired
        differences from base, the headline) and one PNG of the grids: base, reward-tuned, AIG, then the added ones.

        Parameters:
            prompt: English, may be empty (unconditional).
            seed: image k of every grid starts from the noise of seed + k.
            images: a column, 1 to 16.
            steps: denoising steps, 1 to 100.
            guidance: classifier-free guidance scale, 0 to 20, off up to 1.
            schedule: share of the tuned model over progress, in one of the forms that /schedules lists.
            tuning: the tuned model, one of those that /models lists.
            lora_scale: strength of the tuned model, 0 to 1.5.
            kl: KL coefficient that the tuned model was trained with, one of those on the page.
            closed: end the schedule at 1 instead of one step before.
            columns: up to 3 more columns, such as lora:0.5 or step:0.6:unguided, in the forms that /columns lists.
            model: one of those that /models lists; empty for the one that the app starts with.
        """
        request = request_of(prompt, seed, images, steps, guidance, schedule, tuning, lora_scale, kl, closed, columns, model)
        last = None
        try:
            for last in self.updates(request, client.session_hash):  # noqa: B007
                pass
        except (ValueError, RunFailed) as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        if last is None or last.state != "done":
            raise gr.Error("The run was stopped.", print_exception=False)
        assert last.scores is not None  # a run that is done has them
        scores = {"request": dataclasses.asdict(request), "rows": last.rows, "seconds": last.seconds, **last.scores.to_json()}
        return scores, save_bytes_to_cache(export.png(last), "aig.png", cache_dir=get_upload_folder())
