"""One worker thread owns the model; requests reach it through a bounded queue, results leave through bounded outboxes.

Two threads that switch LoRA states on one denoiser produce wrong images without an exception, so nothing but the worker ever
touches the model. A request is checked completely before it is queued. One model is loaded at a time: the worker frees it
before it loads the one that the next request asks for. What a model needs from elsewhere is fetched by a second thread before
its run enters the queue, so nobody else waits for a download.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace

import torch

from aig import zerogpu
from aig.comparison import Update, compare
from aig.facts import Facts
from aig.models import Model, Offer
from aig.plan import Plan
from aig.request import MAX_NAME, Request
from aig.sampling import Stopped
from aig.steps import OneTooMany

GPU_SECONDS = 120  # that a run may take of a visitor's quota on ZeroGPU, loading included
MAX_WAITING = 16  # requests in the queue: a minute or two of patience on two cores


class Busy(ValueError):
    """The queue is full."""


class RunFailed(RuntimeError):
    """A run failed on the machine, not by its request; the next one is not affected."""


class Stream:
    """The updates of one run. Its outbox holds the latest update only, so a slow reader never holds the model.

    ``close`` may be called from any thread; the run then ends within one denoising step.
    """

    def __init__(self, beginning: Update, forget: Callable[[Stream], None]) -> None:
        self.beginning = beginning
        self.context = copy_context()  # of the visitor's request, whose GPU quota a run takes on ZeroGPU
        self._forget = forget
        self._changed = threading.Condition()
        self._latest: Update | None = None
        self._failure: Exception | None = None  # raised once what came before it was read
        self._ended = self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Update:
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._ended or self._closed)
            item, self._latest = self._latest, None
        if self._closed:
            raise StopIteration
        if item is None:
            failure, self._failure = self._failure, None
            raise failure or StopIteration
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

    @property
    def ended(self) -> bool:
        return self._ended

    def put(self, update: Update) -> None:
        """Show this update next, instead of one that nobody has read yet."""
        with self._changed:
            self._latest = update
            self._changed.notify_all()

    def end(self, last: Update | Exception) -> None:
        """The last update, or what the reader's iteration raises."""
        with self._changed:
            if isinstance(last, Exception):
                self._failure = last
            else:
                self._latest = last
            self._ended = True
            self._changed.notify_all()


def nothing_else(name: str) -> Offer:
    """ValueError: no other model is on offer."""
    raise ValueError(f"Unknown model {ascii(name)[:60]}; this app serves one only.")


@contextmanager
def explained() -> Iterator[None]:
    """Turn what keeps a model from being fetched or loaded into one sentence for whoever asked for it."""
    try:
        yield
    except ValueError as problem:
        raise RunFailed(f"The model could not be loaded: {problem}") from problem
    except OSError as problem:  # without its path, which is nobody's business
        raise RunFailed(f"The model could not be loaded: {problem.strerror or type(problem).__name__}.") from problem


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
        self._fetching: deque[tuple[Offer, Stream]] = deque()  # whose models are downloaded first, one after the other
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 10.0  # of the last run, for estimates
        self._model: Model | None = None  # the worker's alone
        self._job = zerogpu.on_gpu(self._compare, seconds=lambda beginning: GPU_SECONDS)
        self._threads = [
            threading.Thread(target=self._work, name="model", daemon=True),
            threading.Thread(target=self._download, name="downloads", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

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
        stream = Stream(Update(state="waiting", plan=Plan.of(request, facts)), self._forget)
        offer = None if facts is self._ready.result() else self._find(facts.name)
        missing = offer is not None and offer.missing(request.tuning)
        with self._changed:
            if self._closed:
                raise RunFailed("The app is closing.")
            if (waiting := len(self._waiting) + len(self._fetching)) >= self._max_waiting:
                raise Busy(f"Busy: {waiting} runs are waiting; try again in about {self._seconds * waiting:.0f} seconds.")
            if missing:
                self._fetching.append((offer, stream))
                self._changed.notify_all()
            else:
                self._enqueue(stream)
        return stream

    def close(self) -> None:
        """Stop all runs and end the worker."""
        with self._changed:
            self._closed = True
            waiting = [*self._waiting, *(stream for _, stream in self._fetching)]
            self._changed.notify_all()
        for stream in waiting:
            stream.close()
        for thread in self._threads:
            thread.join(timeout=30)

    def _enqueue(self, stream: Stream) -> None:
        """Last in the queue."""
        self._waiting.append(stream)
        self._tell_places()
        self._changed.notify_all()

    def _download(self) -> None:
        """The second thread's work: fetch what a run needs, then let it wait for its turn."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fetching or self._closed)
                if self._closed:
                    return
                offer, stream = self._fetching.popleft()
            tell = self._teller(stream.beginning, stream.put, lambda: stream.closed or self._closed)  # noqa: B023
            try:
                with explained():
                    tell("")
                    offer.fetch(stream.beginning.plan.request.tuning, tell)
            except (Stopped, RunFailed) as failure:
                stream.end(failure if isinstance(failure, RunFailed) else RunFailed("The run was stopped."))
            except Exception as failure:  # told as a run's is
                self._log(failure)
                stream.end(RunFailed("The download failed by a fault of the app; the log has the details."))
            with self._changed:
                if not stream.ended and not stream.closed:
                    self._enqueue(stream)

    def _forget(self, stream: Stream) -> None:
        with self._changed:
            self._fetching = deque(item for item in self._fetching if item[1] is not stream)
            if stream in self._waiting:
                self._waiting.remove(stream)
                self._tell_places()

    def _tell_places(self) -> None:
        for i, stream in enumerate(self._waiting, start=1):
            stream.put(replace(stream.beginning, place=i))

    def _work(self) -> None:
        try:
            self._model = self._first()
        except Exception as failure:  # handed to everyone who asks for the model
            self._ready.set_exception(failure)
            return
        self._ready.set_result(self._model.facts)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                stream = self._waiting.popleft()
                self._tell_places()
            try:
                last = stream.context.run(self._job, stream.beginning, stream.put, lambda: stream.closed or self._closed)  # noqa: B023
                self._seconds = last.seconds
                stream.end(last)
            except Stopped:
                stream.end(RunFailed("The run was stopped."))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                stream.end(RunFailed("The machine ran out of memory; try fewer images."))
            except (FloatingPointError, OneTooMany) as failure:
                stream.end(RunFailed(f"The run failed: {failure}."))
            except (RunFailed, zerogpu.NoGpu) as failure:
                stream.end(RunFailed(str(failure)))
            except Exception as failure:  # the worker must survive; the requester is told, and so is the log
                self._log(failure)
                stream.end(RunFailed("The run failed by a fault of the app; the log has the details."))
            del stream

    @staticmethod
    def _log(failure: Exception) -> None:
        threading.excepthook(threading.ExceptHookArgs((type(failure), failure, failure.__traceback__, threading.current_thread())))

    @staticmethod
    def _teller(beginning: Update, put: Callable[[Update], None], stopped: Callable[[], bool]) -> Callable[[str], None]:
        """What tells a visitor how loading goes, and raises Stopped when nobody listens any more."""

        def tell(note: str) -> None:
            if stopped():
                raise Stopped
            put(replace(beginning, state="loading", note=note))

        return tell

    def _compare(self, beginning: Update, put: Callable[[Update], None], stopped: Callable[[], bool]) -> Update:
        """A whole run on the worker's thread, or on ZeroGPU in the process that has the GPU."""
        tell = self._teller(beginning, put, stopped)
        with explained():
            model = self._loaded(beginning.plan.request.model, tell)
            model.prepare(beginning.plan.request.tuning, tell)
        return compare(model, beginning, put, stopped, preview_share=self._preview_share)

    def _loaded(self, name: str, tell: Callable[[str], None]) -> Model:
        """The model of this name. Another one is freed before it is loaded: no machine has to hold both."""
        first = name in ("", self._ready.result().name)
        offer = None if first else self._find(name)
        wanted = self._ready.result().name if first else offer.facts.name
        if self._model is None or self._model.facts.name != wanted:
            tell("")
            before, self._model = self._model, None  # whatever happens, nothing half freed is used again
            if before is not None:
                before.release()
            del before
            gc.collect()  # pipelines hold themselves in cycles
            self._model = self._first() if first else offer.load(tell)
        return self._model
