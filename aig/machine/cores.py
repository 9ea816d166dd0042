"""How many threads torch has and how they wait for one another, settled before torch is loaded: by the app, the command line and
training.

Threads share every operation and meet at its end. By default there is one a core, and the first to arrive spins for milliseconds. On
cores that others use too, a spinning thread holds the core that the last one needs, and a run takes four times as long. Here
threads sleep while they wait, and a machine of few cores has two a core: the second one runs while the first sleeps, and beside
foreign jobs they get more of the cores. ``python -m tests.benchmarks.cores`` measures both.
"""

from __future__ import annotations

import os

SETTINGS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of OpenMP, GNU's (in torch's wheels) and LLVM's
FEW = 4  # cores, of which each gets two threads; more were not measured


def settle() -> None:
    """Set what is not set in the environment; whoever set one of these knows better. Without effect once torch is loaded."""
    if any(name in os.environ for name in SETTINGS):
        return
    os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0")
    if (cores := available()) <= FEW:
        os.environ["OMP_NUM_THREADS"] = str(2 * cores)


def available() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
