"""ZeroGPU Spaces: the same app where a GPU exists for the time of a call only, in a process forked for it.

On ZeroGPU a function decorated with ``spaces.GPU`` runs in a fork of this process. Its arguments and what it yields are
pickled; what it refers to, such as a model, is what this process held when it forked, its "cuda" tensors moved to the
GPU. Before, in this process, CUDA is only emulated, and in the thread alone that imported ``spaces``. Hence three
rules, which this file keeps: the first model is loaded in the main thread before the app is launched (``early``); a job
is an argument and yields its answers (``on_gpu``); and a stop is the end of the stream.
Everywhere else nothing is imported and nothing changes. Read from the sources of spaces 0.51.
"""

from __future__ import annotations

import functools
import os
import pickle
import traceback
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

Order = TypeVar("Order")
Answer = TypeVar("Answer")
Loaded = TypeVar("Loaded")
Job = Callable[[Order], Generator[Answer]]
Event = tuple[str, Any]  # ("put" | "done" | "raised", what)


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
    """``job``, a generator function; on ZeroGPU the same in the process that has the GPU. To be called before the app is launched.

    seconds: what a job needs at most, which is what the visitor's quota must hold. ``order`` and answers must pickle.
    Closing the generator ends the job at its next answer. Raises what the job raises, and NoGpu.

    The generator must be run in the context (contextvars) of the visitor's request: whose quota it is stands there.
    """
    if not here():
        return job
    import gradio
    import spaces

    spaces.disable_gradio_auto_wrap()  # handlers stay in this process, where the queue and the worker are
    remote = followed(spaces.GPU(streamed(job), duration=lambda order: max(1, round(seconds(order)))))

    @functools.wraps(job)
    def call(order: Order) -> Generator[Answer]:
        try:
            yield from remote(order)
        except gradio.Error as refusal:
            raise NoGpu(str(refusal.message)) from refusal

    return call


def streamed(job: Job) -> Callable[[Order], Generator[Event]]:
    """The job with its answers, its end and what it raises as events that pickle."""

    def events(order: Order) -> Generator[Event]:
        try:
            with closing(job(order)) as answers:
                for answer in answers:
                    yield "put", answer
        except Exception as failure:
            yield "raised", _portable(failure)
        else:
            yield "done", None

    return events


def followed(events: Callable[[Order], Generator[Event]]) -> Job:
    """The job again, from the generator function of its events."""

    def job(order: Order) -> Generator[Answer]:
        with closing(events(order)) as stream:
            for kind, what in stream:
                if kind == "done":
                    return
                if kind == "raised":
                    raise what
                yield what
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
