"""``python -m tests.benchmarks.curve``: frame times while a point of the curve is dragged, at rest and during a run.

The app runs as a process of its own with the embedded model; Chromium, without a GPU, shares the machine with it. A
point is dragged for three seconds with a new mouse position in every frame; the page records its animation frames.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import CDPSession, Page, sync_playwright

from tests.browser.driving import CHROMIUM, FLAGS, open_page, script, set_slider
from tests.browser.test_editor import Editor


@contextmanager
def app(port: int) -> Iterator[str]:
    """The address of ``python app.py`` once it answers."""
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(url, timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def busy(devtools: CDPSession) -> float:
    """Processor seconds that the page's main thread has worked."""
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def dragged(page: Page, seconds: float) -> dict[str, float]:
    """Milliseconds between animation frames while a point goes round in circles."""
    editor = Editor(page)
    editor.write("points:0,0;0.25,0.1;0.5,0.5;0.75,0.4;1,1")
    page.mouse.move(*editor.at(0.5, 0.5))
    page.mouse.down()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = busy(devtools)
    seen = page.evaluate(script("circle"), 1000 * seconds)
    spent = busy(devtools) - before
    page.mouse.up()
    times = seen["times"]
    gaps = sorted(b - a for a, b in zip(times, times[1:]))
    return {
        "median frame (ms)": round(statistics.median(gaps), 1),
        "95th percentile (ms)": round(gaps[math.ceil(0.95 * len(gaps)) - 1], 1),
        "longest (ms)": round(gaps[-1], 1),
        "frames per second": round(1000 * len(gaps) / (times[-1] - times[0]), 1),
        "main thread's work a frame (ms)": round(1000 * spent / len(times), 1),
        "frames with a new curve": f"{seen['drawn']} of {len(times)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--port", type=int, default=7991)
    arguments = parser.parse_args()
    with app(arguments.port) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        open_page(page, url, expected="done")
        results = {"at rest": dragged(page, arguments.seconds)}
        set_slider(page, "Images", 4)
        set_slider(page, "Steps", 20)
        page.click("#run")
        page.wait_for_selector(".stage[data-state=running] .mosaic img", timeout=60_000)
        results["during a run"] = dragged(page, arguments.seconds)
        results["the run still went on"] = page.locator(".stage[data-state=running]").count() == 1
        browser.close()
    print(json.dumps(results | {"cores": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
