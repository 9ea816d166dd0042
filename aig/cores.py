"""How torch's threads wait for one another, settled before torch is loaded: by the app, the command line and training.

Threads share every operation and meet at its end. By default the first to arrive spins for milliseconds, which wins little on
idle cores; on cores that others use too it holds the core that the last one needs, and a run takes many times as long. Here it
spins for some 50 microseconds, about what waking a thread costs, and then sleeps.
"""

from __future__ import annotations

import os

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of OpenMP as GNU has it, which torch's wheels bring, and LLVM


def settle() -> None:
    """Set what is not set in the environment; whoever set one of these knows better. Without effect once torch is loaded."""
    if not any(name in os.environ for name in WAITING):
        os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="1000", KMP_BLOCKTIME="0")
