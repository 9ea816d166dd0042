"""One worker thread owns the model; jobs reach it through a bounded queue, their updates leave through bounded outboxes.

Two threads that switch LoRA states on one denoiser produce wrong images without an exception, so nothing but the worker ever
touches the model. A job is planned completely before it is queued. One model is loaded at a time: the worker frees it
before it loads the one that the next job asks for. What a model needs from elsewhere is fetched by a second thread before
its job enters the queue, so nobody else waits for a download.

Turns are fair: of the waiting jobs that one is next whose user had the fewest so far, and long jobs give way to all others between
their units.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from aig.method.frames import Stopped, handed
from aig.method.steps import OneTooMany
from aig.runs import zerogpu
from aig.runs.comparison import Comparison, Update
from aig.runs.facts import Facts
from aig.runs.jobs import PAUSE, Job, Signal, Stream
from aig.runs.models import Model, Offer
from aig.runs.plan import Plan
from aig.runs.request import MAX_NAME, Request

GPU_SECONDS = 120  # that a run may take of a visitor's quota on ZeroGPU, loading included
MAX_WAITING = 16  # requests in the queue: a minute or two of patience on two cores


class Busy(ValueError):
    """The queue is full."""


class RunFailed(RuntimeError):
    """A run failed on the machine, not by its request; the next one is not affected."""


def nothing_else(name: str) -> Offer:
    """ValueError: no other model is on offer."""
    raise ValueError(f"Unknown model {ascii(name)[:60]}; this app serves one only.")


@contextmanager
def explained() -> Generator[None]:
    """Turn what keeps a model from being fetched or loaded into one sentence for whoever asked for it."""
    try:
        yield
    except ValueError as problem:
        raise RunFailed(f"The model could not be loaded: {problem}") from problem
    except OSError as problem:  # without its path, which is nobody's business
        raise RunFailed(f"The model could not be loaded: {problem.strerror or type(problem).__name__}.") from problem


class Engine:
    """Loads a model in its worker thread and runs jobs on it, one after the other.

    load: the model that the app starts with. find: name -> what else is on offer; ValueError names the choices.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        find: Callable[[str], Offer] = nothing_else,
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._first, self._find = load, find
        self._max_waiting = max_waiting
        self._ready: Future[Facts] = Future()
        self._waiting: deque[Stream] = deque()
        self._turns: Counter[Hashable] = Counter()  # that each user had
        self._fetching: deque[tuple[Offer, Stream]] = deque()  # whose models are downloaded first, one after the other
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 10.0  # of the last run, for estimates
        self._model: Model | None = None  # the worker's alone
        self._on_model = zerogpu.on_gpu(self._run, seconds=lambda job: GPU_SECONDS)
        self._threads = [
            threading.Thread(target=self._work, name="model", daemon=True),
            threading.Thread(target=self._download, name="downloads", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def facts(self, model: object = "") -> Facts:
        """What is known of a model; "" is the one that the app starts with, once that is loaded.

        Raises what its loading raised, and ValueError with the choices for a name that is not on offer.
        """
        first = self._ready.result()
        if not isinstance(model, str):
            raise ValueError(f"The model must be named by text, not {type(model).__name__}.")
        if len(model) > MAX_NAME:
            raise ValueError(f"The model's name has {len(model)} characters; up to {MAX_NAME} are allowed.")
        return first if model in ("", first.name) else self._find(model).facts

    def stream(self, request: Request, user: Hashable = None) -> Stream:
        """The updates of a comparison. ValueError when the request is refused, Busy when the queue is full."""
        return self.submit(Comparison(plan=Plan.of(request, self.facts(request.model))), user)

    def submit(self, job: Job, user: Hashable = None) -> Stream:
        """Queue a job and return its updates. ValueError for a model that is not on offer, Busy when the queue is full.

        user: whose turn it takes, such as a session.
        """
        facts, stream = self.facts(job.model), Stream(job, user, self._forget)
        offer = None if facts is self._ready.result() else self._find(facts.name)
        missing = offer is not None and offer.missing(job.tuning)
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

            def tell(note: str, stream: Stream = stream) -> None:
                if stream.closed or self._closed:
                    raise Stopped
                stream.put(stream.job.update("loading", note=note))

            try:
                with explained():
                    tell("")
                    offer.fetch(stream.job.tuning, tell)
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
        for i, stream in enumerate(sorted(self._waiting, key=self._turn), start=1):
            stream.put(stream.job.update("waiting", place=i))

    def _goes_first(self, stream: Stream) -> bool:
        """Whether a long job gives way to this one: not to another long one whose model was freed, or both would begin again for ever.

        On ZeroGPU it gives way to none, as a generator that stands still keeps the GPU.
        """
        return not zerogpu.here() and (stream.paused is None or stream.paused[1] is self._model)

    def _turn(self, stream: Stream) -> tuple[bool, int]:
        """What decides who is next, the smallest first and the earliest of equal ones."""
        return stream.paused is not None, self._turns[stream.user]

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
                stream = min(self._waiting, key=self._turn)
                self._waiting.remove(stream)
                self._turns[stream.user] += stream.paused is None
                self._tell_places()
            try:
                self._serve(stream)
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
            with self._changed:
                if not self._waiting:
                    self._turns.clear()

    def _serve(self, stream: Stream) -> None:
        """Run a job to its end, or to a pause at which others wait; then it goes to the end of the queue."""
        work, model = stream.paused or (self._on_model(stream.job), None)
        if stream.paused and model is not self._model:  # which was freed meanwhile
            stream.context.run(work.close)
            work = self._on_model(stream.job)
        last, end, stream.paused = None, object(), None
        try:
            while (update := stream.context.run(next, work, end)) is not end:
                if stream.closed or self._closed:
                    raise Stopped
                if update is PAUSE:
                    with self._changed:
                        if any(map(self._goes_first, self._waiting)):
                            stream.paused, work = (work, self._model), None
                            self._enqueue(stream)
                            return
                elif isinstance(update, Update) and update.state == "done":
                    last = update
                elif isinstance(update, Update):
                    stream.put(update)
        finally:
            if work is not None:
                stream.context.run(work.close)
        assert last is not None  # the last update of a job is "done"
        self._seconds = last.seconds
        stream.end(last)

    @staticmethod
    def _log(failure: Exception) -> None:
        threading.excepthook(threading.ExceptHookArgs((type(failure), failure, failure.__traceback__, threading.current_thread())))

    def _run(self, job: Job) -> Generator[Update | Signal | None]:
        """A whole job on the worker's thread, or on ZeroGPU in the process that has the GPU."""

        def prepared(hand: Callable[[Update], None]) -> Model:
            def tell(note: str) -> None:
                hand(job.update("loading", note=note))

            with explained():
                model = self._loaded(job.model, tell)
                model.prepare(job.tuning, tell)
            return model

        yield from job.run((yield from handed(prepared)))

    def _loaded(self, name: str, tell: Callable[[str], None]) -> Model:
        """The model of this name. Another one is freed before it is loaded: no machine has to hold both."""
        first = self._ready.result().name
        offer = None if name in ("", first) else self._find(name)
        wanted = first if offer is None else offer.facts.name
        if self._model is None or self._model.facts.name != wanted:
            tell("")
            before, self._model = self._model, None  # whatever happens, nothing half freed is used again
            if before is not None:
                before.release()
            del before
            gc.collect()  # pipelines hold themselves in cycles
            self._model = self._first() if offer is None else offer.load(tell)
        return self._model
