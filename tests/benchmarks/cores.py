"""``python -m tests.benchmarks.cores``: a run on idle cores and beside foreign jobs, under several ways to wait for a thread.

Every setting has a process of its own, which loads the embedded world once. Runs take turns: each setting on idle cores, then
each beside two foreign jobs of one thread. The share of the cores that others took meanwhile is printed with every figure: on
a machine that is not idle, compare figures of one round only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SETTINGS = {  # name -> environment of the process; "ours" is what the app does by itself
    "as torch comes": {"AIG_CORES": "stock"},
    "ours": {},
    "passive": {"AIG_CORES": "stock", "OMP_WAIT_POLICY": "passive"},
    "spin 300": {"AIG_CORES": "stock", "GOMP_SPINCOUNT": "300"},
    "spin 3000": {"AIG_CORES": "stock", "GOMP_SPINCOUNT": "3000"},
    "spin 10000": {"AIG_CORES": "stock", "GOMP_SPINCOUNT": "10000"},
    "4 threads": {"AIG_CORES": "stock", "OMP_NUM_THREADS": "4"},
    "3 threads": {"AIG_CORES": "stock", "OMP_NUM_THREADS": "3"},
    "passive, 4 threads": {"AIG_CORES": "stock", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "4"},
    "one thread": {"AIG_CORES": "stock", "OMP_NUM_THREADS": "1"},
}
RUNS = {"1 x 4": (1, 4), "4 x 8": (4, 8)}  # images a column, steps
FOREIGN = 2  # jobs of one thread
FOREIGN_JOB = "import os\nours = os.getppid()\nwhile os.getppid() == ours: pass"  # no longer than the benchmark


def serve() -> None:
    """Run what stdin asks for, one line "images steps" each, and answer with its seconds."""
    if os.environ.get("AIG_CORES") != "stock":
        from aig.machine import cores

        cores.settle()
    from aig.portraits import serving
    from aig.runs.engine import Engine
    from aig.runs.request import Request

    engine = Engine(serving.load)
    engine.facts()
    print("ready", flush=True)
    for line in sys.stdin:
        images, steps = map(int, line.split())
        start = time.perf_counter()
        for _ in engine.stream(Request(images=images, steps=steps)):
            pass
        print(time.perf_counter() - start, flush=True)
    engine.close()


class Server:
    """A process with one setting."""

    def __init__(self, environment: dict[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.cores", "--serve"],
            env=clean | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()

    def run(self, images: int, steps: int) -> float:
        print(images, steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def foreign(jobs: int) -> Iterator[None]:
    """That many busy neighbours for a while."""
    busy = [subprocess.Popen([sys.executable, "-c", FOREIGN_JOB]) for _ in range(jobs)]
    try:
        yield
    finally:
        for job in busy:
            job.kill()
            job.wait()


def used() -> tuple[float, float]:
    """Seconds that all cores were busy since the machine started, and that were possible (Linux)."""
    numbers = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK"), sum(numbers) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS), help="of the settings")
    parser.add_argument("--runs", nargs="+", choices=tuple(RUNS), default=list(RUNS), help="images a column x steps")
    options = parser.parse_args()
    sizes = {run: RUNS[run] for run in options.runs}
    if options.serve:
        return serve()
    found: dict[tuple[str, str, int], list[float]] = {}
    with ExitStack() as stack:
        servers = {name: Server(SETTINGS[name]) for name in options.only}
        for server in servers.values():
            stack.callback(server.close)
            for size in sizes.values():
                server.run(*size)
        before = used()
        time.sleep(2)
        others = (used()[0] - before[0]) / (used()[1] - before[1])
        for _ in range(options.rounds):
            for jobs in (0, FOREIGN):
                with foreign(jobs):
                    for run, size in sizes.items():
                        for name, server in servers.items():
                            found.setdefault((run, name, jobs), []).append(server.run(*size))
    table = {}
    for run in sizes:
        for name in options.only:
            idle, busy = found[run, name, 0], found[run, name, FOREIGN]
            stock = found[run, options.only[0], 0]
            table[f"{run}, {name}"] = {
                "idle (s)": round(statistics.median(idle), 3),
                f"idle / {options.only[0]}": round(statistics.median(a / b for a, b in zip(idle, stock)), 3),
                "busy (s)": round(statistics.median(busy), 3),
                "busy / idle": round(statistics.median(b / a for a, b in zip(idle, busy)), 2),
            }
    print(json.dumps(table | {"cores": os.cpu_count(), "taken by others beforehand": round(others, 2)}, indent=1))


if __name__ == "__main__":
    main()
