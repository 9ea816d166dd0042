"""ZeroGPU: elsewhere nothing changes; a job in pieces is the job; with the real package, against a small device
service."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from aig.method.frames import Stopped
from aig.runs.zerogpu import early, followed, on_gpu, streamed


def count(order):
    """Counts to the order."""
    yield from range(order)


def test_elsewhere_nothing_changes_and_nothing_is_imported():
    load = lambda: 1  # noqa: E731
    assert on_gpu(count, seconds=lambda order: 1) is count and early(load) is load
    code = "import aig.runs.zerogpu, sys; assert not {'torch', 'gradio', 'spaces', 'diffusers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_job_in_pieces_is_the_job():
    assert list(followed(streamed(count))(3)) == [0, 1, 2]


def test_a_stop_ends_the_job_at_its_next_answer():
    asked, ended = [], []

    def endless(order):
        try:
            while True:
                asked.append(1)
                yield None
        finally:
            ended.append(1)

    run = followed(streamed(endless))(None)
    for _ in range(3):
        next(run)
    run.close()
    assert len(asked) == 3 and ended == [1]


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize("failure", [ValueError("no"), FloatingPointError("the images are not finite"), Stopped(), MemoryError("x")])
def test_what_the_job_raises_arrives_with_its_traceback(failure):
    def broken(order):
        yield 1
        raise failure

    with pytest.raises(type(failure)) as raised:
        list(followed(streamed(broken))(None))
    carried = pickle.loads(pickle.dumps(raised.value))
    assert str(carried) == str(failure) and "in broken" in carried.__notes__[0]


def test_an_exception_that_does_not_pickle_becomes_one_that_does():
    def broken(order):
        yield 1
        raise Unpicklable("a", "b")

    with pytest.raises(RuntimeError, match="Unpicklable: a b"):
        list(followed(streamed(broken))(None))


def test_a_stream_that_breaks_off_is_an_error():
    with pytest.raises(RuntimeError, match="without an answer"):
        list(followed(lambda order: (event for event in [("put", 1)]))(None))


def test_with_the_real_package_jobs_run_in_a_fork_that_holds_the_model(tmp_path):
    pytest.importorskip("spaces")
    played = [sys.executable, "-m", "tests.zero_device", str(tmp_path)]
    done = subprocess.run(played, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"})  # fmt: skip
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout + done.stderr
