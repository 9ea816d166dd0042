"""ZeroGPU Spaces: the same app where a GPU exists for the time of a call only, in a process forked for it.

On ZeroGPU a function decorated with ``spaces.GPU`` runs in a fork of this process. Its arguments and what it yields are
pickled; what it refers to, such as a model, is what this process held when it forked, its "cuda" tensors moved to the
GPU. Before, in this process, CUDA is only emulated, and in the thread alone that imported ``spaces``. Hence three
rules, which this file keeps: the first model is loaded in the main thread before the app is launched (``early``); a job
gets its order as an argument and answers by ``put`` (``on_gpu``); and a stop travels as the end of the stream.
Everywhere else nothing is imported and nothing changes. Read from the sources of spaces 0.51.
"""

from __future__ import annotations

import functools
import os
import pickle
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

Order, Answer, Loaded = TypeVar("Order"), TypeVar("Answer"), TypeVar("Loaded")
Job = Callable[[Order, Callable[[Answer], None], Callable[[], bool]], Answer]  # (order, put, stopped) -> last answer
Event = tuple[str, object]  # ("put" | "done" | "raised" | "alive", what)


class NoGpu(RuntimeError):
    """No GPU was to be had, for instance because the visitor's quota is used up; the message is for them."""


def here() -> bool:
    """Whether this is a ZeroGPU Space."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def early(load: Callable[[], Loaded]) -> Callable[[], Loaded]:
    """``load``; on ZeroGPU a function that returns what was loaded now, where CUDA is emulated: call it in the main
    thread."""
    if not here():
        return load
    import spaces  # noqa: F401  emulates CUDA in this thread

    loaded = load()
    return lambda: loaded


def on_gpu(job: Job, *, seconds: Callable[[Order], float]) -> Job:
    """``job``; on ZeroGPU the same job in the process that has the GPU. To be called before the app is launched.

    seconds: what a job needs at most, which is what the visitor's quota must hold. ``order`` and answers must pickle.
    Once ``stopped()`` is true the job ends at the next time that it asks, and Stopped is raised. Raises what the job
    raises, and NoGpu.

    The call must be made in the context (contextvars) of the visitor's request: whose quota it is stands there.
    """
    if not here():
        return job
    import gradio
    import spaces

    spaces.disable_gradio_auto_wrap()  # handlers stay in this process, where the queue and the worker are
    remote = followed(spaces.GPU(streamed(job), duration=lambda order: max(1, round(seconds(order)))))

    @functools.wraps(job)
    def call(order: Order, put: Callable[[Answer], None], stopped: Callable[[], bool]) -> Answer:
        try:
            return remote(order, put, stopped)
        except gradio.Error as refusal:
            raise NoGpu(str(refusal.message)) from refusal

    return call


def streamed(job: Job) -> Callable[[Order], Iterator[Event]]:
    """The job as a generator function of its order; closing the generator makes ``stopped()`` true and waits for its
    end."""

    def events(order: Order) -> Iterator[Event]:
        box: queue.SimpleQueue[Event] = queue.SimpleQueue()
        end = threading.Event()

        def stopped() -> bool:
            box.put(("alive", None))  # so that whoever reads can tell of a stop
            return end.is_set()

        def work() -> None:
            try:
                box.put(("done", job(order, lambda answer: box.put(("put", answer)), stopped)))
            except BaseException as failure:
                box.put(("raised", _portable(failure)))

        thread = threading.Thread(target=work, name="job", daemon=True)
        thread.start()
        try:
            kind = ""
            while kind not in ("done", "raised"):
                kind, what = box.get()
                yield kind, what
        finally:
            end.set()
            thread.join()

    return events


def followed(events: Callable[[Order], Iterator[Event]]) -> Job:
    """The job again, from the generator function of its events."""

    def job(order: Order, put: Callable[[Answer], None], stopped: Callable[[], bool]) -> Answer:
        from aig.sampling import Stopped

        with closing(events(order)) as stream:
            for kind, what in stream:
                if kind == "done":
                    return what
                if kind == "raised":
                    raise what
                if stopped():
                    raise Stopped
                if kind == "put":
                    put(what)
        raise RuntimeError("the process with the GPU ended without an answer")

    return job


def _portable(failure: BaseException) -> BaseException:
    """The exception with its traceback as a note, if it survives pickling, else a RuntimeError that says the same."""
    failure.add_note("".join(traceback.format_exception(failure)))
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        other = RuntimeError(f"{type(failure).__name__}: {failure}")
        other.add_note(failure.__notes__[-1])
        return other
    return failure
