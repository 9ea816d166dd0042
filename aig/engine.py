"""One worker thread owns the model; requests reach it through a bounded queue, results leave through bounded outboxes.

Two threads that switch LoRA states on one denoiser produce wrong images without an exception, so nothing but the worker ever
touches the model. A request is checked completely before it is queued.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from aig.adapters import blend, denoiser
from aig.columns import Recipe
from aig.controlled import best_of
from aig.models import Model
from aig.request import Request, checked, cost, recipes
from aig.sampling import Column, Frame, Stopped, sample
from aig.scores import Scores, score

MAX_WAITING = 16  # requests in the queue: a minute or two of patience on two cores


class Busy(ValueError):
    """The queue is full."""


class RunFailed(RuntimeError):
    """A run failed on the machine, not by its request; the next one is not affected."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """One moment of a run."""

    state: str  # waiting, running or done
    request: Request
    shares: tuple[float, ...]  # of the tuned model in the AIG column, at each step
    place: int = 0  # in the queue, 1 = next
    step: int = 0  # of all passes: each CoDe column is sampled in one of its own, after the others
    steps: int = 0
    images: np.ndarray | None = None  # (columns so far, N, H, W, 3) uint8
    scores: Scores | None = None  # of the columns so far
    rows: int = 0  # model rows so far
    seconds: float = 0.0
    left: float | None = None  # seconds, estimated


class Stream:
    """The updates of one run. Its outbox holds the latest update only, so a slow reader never holds the model.

    ``close`` may be called from any thread; the run then ends within one denoising step.
    """

    def __init__(self, request: Request, shares: tuple[float, ...], forget: Callable[[Stream], None]) -> None:
        self.request, self.shares = request, shares
        self._forget = forget
        self._changed = threading.Condition()
        self._latest: Update | Exception | None = None
        self._ended = self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Update:
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._ended or self._closed)
            item, self._latest = self._latest, None
        if self._closed or item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stop the run, or leave the queue."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._forget(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def _put(self, item: Update | Exception, *, last: bool) -> None:
        with self._changed:
            self._latest, self._ended = item, last
            self._changed.notify_all()


class Engine:
    """Loads a model in its worker thread and runs requests on it, one after the other."""

    def __init__(self, load: Callable[[], Model], *, max_waiting: int = MAX_WAITING, preview_share: float = 0.06) -> None:
        self._max_waiting = max_waiting
        self._preview_share = preview_share  # of the model's time; see sampling.sample
        self._ready: Future[Model] = Future()
        self._waiting: deque[Stream] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 10.0  # of the last run, for estimates
        self._thread = threading.Thread(target=self._work, args=(load,), name="model", daemon=True)
        self._thread.start()

    @property
    def model(self) -> Model:
        """The model, once it is loaded; raises what loading raised. Read its facts only: it belongs to the worker."""
        return self._ready.result()

    def stream(self, request: Request) -> Stream:
        """Check the request, queue it, and return its updates. ValueError when it is refused, Busy when the queue is full."""
        shares = checked(request, self.model)
        stream = Stream(request, shares, self._forget)
        with self._changed:
            if self._closed:
                raise RunFailed("The app is closing.")
            if len(self._waiting) >= self._max_waiting:
                seconds = self._seconds * len(self._waiting)
                raise Busy(f"Busy: {len(self._waiting)} runs are waiting; try again in about {seconds:.0f} seconds.")
            self._waiting.append(stream)
            self._tell_places()
            self._changed.notify_all()
        return stream

    def close(self) -> None:
        """Stop all runs and end the worker."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._changed.notify_all()
        for stream in waiting:
            stream.close()
        self._thread.join(timeout=30)

    def _forget(self, stream: Stream) -> None:
        with self._changed:
            if stream in self._waiting:
                self._waiting.remove(stream)
                self._tell_places()

    def _tell_places(self) -> None:
        for i, stream in enumerate(self._waiting, start=1):
            stream._put(Update(state="waiting", request=stream.request, shares=stream.shares, place=i), last=False)

    def _work(self, load: Callable[[], Model]) -> None:
        try:
            model = load()
        except Exception as failure:  # handed to everyone who asks for the model
            self._ready.set_exception(failure)
            return
        self._ready.set_result(model)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                stream = self._waiting.popleft()
                self._tell_places()
            try:
                last = self._run(model, stream)
                self._seconds = last.seconds
                stream._put(last, last=True)
            except Stopped:
                stream._put(RunFailed("The run was stopped."), last=True)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                stream._put(RunFailed("The machine ran out of memory; try fewer images."), last=True)
            except FloatingPointError as failure:
                stream._put(RunFailed(f"The run failed: {failure}."), last=True)
            except Exception as failure:  # the worker must survive; the requester is told, and so is the log
                threading.excepthook(threading.ExceptHookArgs((type(failure), failure, failure.__traceback__, self._thread)))
                stream._put(RunFailed("The run failed by a fault of the app; the log has the details."), last=True)
            del stream

    def _run(self, model: Model, stream: Stream) -> Update:
        request, plan = stream.request, recipes(stream.request)
        together, alone = [r for r in plan if r.candidates == 1], [r for r in plan if r.candidates > 1]
        total, steps, done = cost(request), request.steps * (1 + len(alone)), None
        stream._put(Update(state="running", request=request, shares=stream.shares, steps=steps), last=False)

        def update(frame: Frame) -> Update:
            titles = [recipe.title for recipe in plan[: len(frame.images)]]
            return Update(
                state="done" if frame.step == steps else "running",
                request=request,
                shares=stream.shares,
                step=frame.step,
                steps=steps,
                images=(frame.images * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous().numpy(),
                scores=judge(model, titles, frame, request),
                rows=frame.rows,
                seconds=frame.seconds,
                left=frame.seconds / frame.rows * (total - frame.rows),
            )

        def show(frame: Frame) -> None:
            stream._put(update(frame.beside(done) if done else frame), last=False)

        asked = {
            "prompt": request.prompt,
            "seeds": list(request.seeds),
            "steps": request.steps,
            "guidance": request.guidance,
            "tuned": model.twin(request.reward, request.kl, request.lora_scale),
            "on_frame": show,
            "stop": lambda: stream.closed or self._closed,
            "preview_share": self._preview_share,
        }
        done = sample(model.pipe, _columns(model, request.reward, together), **asked)
        for recipe in alone:
            stream._put(update(done), last=False)
            done = best_of(model.pipe, candidates=recipe.candidates, reward=model.rewards[request.reward], **asked).beside(done)
        return replace(update(done), left=0.0)


def _columns(model: Model, reward: str, together: list[Recipe]) -> list[Column]:
    """Recipes with their tuned models: one for all steps, or one whose LoRA scale moves."""

    @cache
    def moving(kl: float) -> Callable[[float], Callable]:
        return blend(denoiser(model.pipe), model.twin(reward, kl, 1.0))

    columns = []
    for recipe in together:
        if recipe.steady:
            scale = next((a for a, g in zip(recipe.scales, recipe.shares) if g), 0.0)
            tuned = [model.twin(reward, recipe.kl, scale)] * len(recipe.shares)
        else:
            tuned = [moving(recipe.kl)(scale) for scale in recipe.scales]
        columns.append(
            Column(name=recipe.title, weights=recipe.shares, tuned=tuned, guided=recipe.guided, noise=recipe.noise)
        )
    return columns


@torch.no_grad()
def judge(model: Model, names: Sequence[str], frame: Frame, request: Request) -> Scores:
    """The reward that tuning saw, the held-out one, diversity and open attributes of a frame's columns."""
    if not torch.isfinite(frame.images).all():
        raise FloatingPointError(f"the images of step {frame.step} are not finite")
    columns, n = frame.images.shape[:2]
    flat = frame.images.flatten(0, 1)
    features, classes = model.measure(flat)
    shown = {name: model.rewards[name] for name in (request.reward, "held-out") if name in model.rewards}
    rewards = {name: reward(flat, [request.prompt] * len(flat)).float().cpu() for name, reward in shown.items()}
    left_open = model.open_attributes(request.prompt)
    return score(
        names,
        features.float().unflatten(0, (columns, n)),
        {name: values.unflatten(0, (columns, n)) for name, values in rewards.items()},
        {name: classes[name].unflatten(0, (columns, n)) for name in left_open},
        model.values,
        proxy=request.reward,
    )
