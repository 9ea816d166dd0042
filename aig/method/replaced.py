"""An attribute that is another one for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

MISSING = object()


@contextmanager
def replaced(target: object, name: str, value: object) -> Generator[None]:
    """``target.name`` is ``value`` inside of the ``with``. What was there comes back, and nothing if that was its class's alone."""
    before = vars(target).get(name, MISSING)
    setattr(target, name, value)
    try:
        yield
    finally:
        if before is MISSING:
            delattr(target, name)
        else:
            setattr(target, name, before)
