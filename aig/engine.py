"""One worker thread owns the model; requests reach it through a bounded queue, results leave through bounded outboxes.

Two threads that switch LoRA states on one denoiser produce wrong images without an exception, so nothing but the worker ever
touches the model. A request is checked completely before it is queued. One model is loaded at a time: the worker frees it
before it loads the one that the next request asks for.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from aig.columns import Recipe
from aig.controlled import best_of
from aig.models import Facts, Model, Offer
from aig.request import MAX_NAME, Request, checked, cost, recipes
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

    state: str  # waiting, loading, running or done
    request: Request
    shares: tuple[float, ...]  # of the tuned model in the AIG column, at each step
    judges: tuple[str, ...] = ()  # the rewards that its scores have
    note: str = ""  # what is being loaded
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

    def __init__(self, beginning: Update, forget: Callable[[Stream], None]) -> None:
        self.beginning = beginning
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


def nothing_else(name: str) -> Offer:
    """ValueError: no other model is on offer."""
    raise ValueError(f"Unknown model {ascii(name)[:60]}; this app serves one only.")


class Engine:
    """Loads a model in its worker thread and runs requests on it, one after the other.

    load: the model that the app starts with. find: name -> what else is on offer; ValueError names the choices.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        find: Callable[[str], Offer] = nothing_else,
        *,
        max_waiting: int = MAX_WAITING,
        preview_share: float = 0.05,
    ) -> None:
        self._first, self._find = load, find
        self._max_waiting = max_waiting
        self._preview_share = preview_share  # of the model's time; see sampling.sample
        self._ready: Future[Facts] = Future()
        self._waiting: deque[Stream] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 10.0  # of the last run, for estimates
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def facts(self, model: str = "") -> Facts:
        """What is known of a model; "" is the one that the app starts with, once that is loaded.

        Raises what its loading raised, and ValueError with the choices for a name that is not on offer.
        """
        first = self._ready.result()
        if not isinstance(model, str):
            raise ValueError(f"The model must be named by text, not {type(model).__name__}.")
        if len(model) > MAX_NAME:
            raise ValueError(f"The model's name has {len(model)} characters; up to {MAX_NAME} are allowed.")
        return first if model in ("", first.name) else self._find(model).facts

    def stream(self, request: Request) -> Stream:
        """Check the request, queue it, and return its updates. ValueError when it is refused, Busy when the queue is full."""
        facts = self.facts(request.model)
        shares, judges = checked(request, facts), facts.judges(request.tuning)
        stream = Stream(Update(state="waiting", request=request, shares=shares, judges=judges), self._forget)
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
            stream._put(replace(stream.beginning, place=i), last=False)

    def _work(self) -> None:
        try:
            model = self._first()
        except Exception as failure:  # handed to everyone who asks for the model
            self._ready.set_exception(failure)
            return
        self._ready.set_result(model.facts)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                stream = self._waiting.popleft()
                self._tell_places()
            try:
                if model is None or model.facts.name != self.facts(stream.beginning.request.model).name:
                    if model is not None:  # freed before the next one is loaded: no machine has to hold both
                        model.release()
                    model = None
                    model = self._load(stream)
                self._prepare(model, stream)
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
            except RunFailed as failure:  # its model could not be loaded
                stream._put(failure, last=True)
            except Exception as failure:  # the worker must survive; the requester is told, and so is the log
                threading.excepthook(threading.ExceptHookArgs((type(failure), failure, failure.__traceback__, self._thread)))
                stream._put(RunFailed("The run failed by a fault of the app; the log has the details."), last=True)
            del stream

    def _tell(self, stream: Stream, note: str = "") -> None:
        if stream.closed or self._closed:
            raise Stopped
        stream._put(replace(stream.beginning, state="loading", note=note), last=False)

    def _load(self, stream: Stream) -> Model:
        gc.collect()  # pipelines hold themselves in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        name = stream.beginning.request.model
        self._tell(stream)
        try:
            return self._first() if name in ("", self._ready.result().name) else self._find(name).load(partial(self._tell, stream))
        except (ValueError, OSError) as problem:
            raise RunFailed(f"The model could not be loaded: {problem}") from problem

    def _prepare(self, model: Model, stream: Stream) -> None:
        try:
            model.prepare(stream.beginning.request.tuning, partial(self._tell, stream))
        except (ValueError, OSError) as problem:
            raise RunFailed(f"The tuned model could not be loaded: {problem}") from problem

    def _run(self, model: Model, stream: Stream) -> Update:
        request, plan = stream.beginning.request, recipes(stream.beginning.request)
        together, alone = [r for r in plan if r.candidates == 1], [r for r in plan if r.candidates > 1]
        total, steps, done = cost(request, model.facts), request.steps * (1 + len(alone)), None
        begun = replace(stream.beginning, state="running", steps=steps)
        stream._put(begun, last=False)

        def update(frame: Frame) -> Update:
            titles = [recipe.title for recipe in plan[: len(frame.images)]]
            return replace(
                begun,
                state="done" if frame.step == steps else "running",
                step=frame.step,
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
            "tuned": model.twin(request.tuning, request.kl, request.lora_scale),
            "on_frame": show,
            "stop": lambda: stream.closed or self._closed,
            "preview_share": self._preview_share,
            "size": model.size,
            "budget": model.budget,
        }
        done = sample(model.pipe, _columns(model, request.tuning, together), **asked)
        for recipe in alone:
            stream._put(update(done), last=False)
            done = best_of(model.pipe, candidates=recipe.candidates, reward=model.rewards[model.facts.proxy(request.tuning)], **asked).beside(done)
        return replace(update(done), left=0.0)


def _columns(model: Model, tuning: str, together: list[Recipe]) -> list[Column]:
    """Recipes with their tuned models: one for all steps, or one whose LoRA scale moves."""

    moving = cache(partial(model.moving, tuning))  # one further copy of the weights for each KL coefficient
    columns = []
    for recipe in together:
        scales = [a for a, g in zip(recipe.scales, recipe.shares) if g]
        if not scales:
            tuned = None  # the base model alone
        elif recipe.steady:
            tuned = [model.twin(tuning, recipe.kl, scales[0])] * len(recipe.shares)
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
    prompts, facts = [request.prompt] * len(flat), model.facts
    rewards = {name: model.rewards[name](flat, prompts).float().cpu() for name in facts.judges(request.tuning)}
    return score(
        names,
        features.float().unflatten(0, (columns, n)),
        {name: values.unflatten(0, (columns, n)) for name, values in rewards.items()},
        {name: classes[name].unflatten(0, (columns, n)) for name in facts.open_attributes(request.prompt)},
        facts.values,
        proxy=facts.proxy(request.tuning),
    )
