"""An attribute that is another one for a while."""

from __future__ import annotations

import pytest

from aig.method.replaced import replaced


class Thing:
    def step(self) -> str:
        return "the class's"


def test_what_was_there_comes_back_and_nothing_else():
    thing = Thing()
    with replaced(thing, "step", lambda: "first"):
        with replaced(thing, "step", lambda: "second"):
            assert thing.step() == "second"
        assert thing.step() == "first"
    assert thing.step() == "the class's" and not vars(thing)


def test_it_comes_back_after_an_exception():
    thing = Thing()
    thing.size = 3
    with pytest.raises(ZeroDivisionError), replaced(thing, "size", 4):
        raise ZeroDivisionError
    assert thing.size == 3
