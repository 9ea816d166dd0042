"""What the engine and those who ask it for work share: a job, what it may yield, and the stream of its updates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable
from contextvars import copy_context
from enum import Enum
from typing import Any, Protocol

from aig.runs.comparison import Update
from aig.runs.models import Model


class Job(Protocol):
    """Work on a model. A job is pickled where the GPU is in another process."""

    @property
    def model(self) -> str:
        """The name of the model that it needs, "" for the first."""

    @property
    def tuning(self) -> str:
        """The tuned model that it needs."""

    def update(self, state: str, **found: Any) -> Update:
        """What is told of it before it runs: it is waiting (``place``) or its model is loading (``note``)."""

    def run(self, model: Model) -> Generator[Update | Signal | None]:
        """Its updates, the last one "done"; None where there is nothing to tell. After each it may be stopped. Where it yields ``PAUSE``
        others may run; if they need another model, it is closed there and begun again later."""


class Signal(Enum):
    """What a job may yield beside its updates."""

    PAUSE = "between two units of a long job: it uses nothing of the model, and others may run"


PAUSE = Signal.PAUSE


class Stream:
    """The updates of one run. Its outbox holds the latest update only, so a slow reader never holds the model.

    ``close`` may be called from any thread; the run then ends within one denoising step.
    """

    def __init__(self, job: Job, user: Hashable, forget: Callable[[Stream], None]) -> None:
        self.job, self.user = job, user
        self.paused: tuple[Generator, Model | None] | None = None  # a long job that was begun, and the model that it uses
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
