"""``python -m tests.benchmarks.traffic URL``: what a running app sends to a browser, and how soon the first picture is there.

Three columns of four images, 20 steps. Bytes are counted as they arrive, by Chromium itself.
"""

from __future__ import annotations

import json
import sys

from playwright.sync_api import sync_playwright

from tests.browser.driving import CHROMIUM, FLAGS, set_slider, state


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        counted = {"bytes": 0}
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.on("Network.dataReceived", lambda data: counted.update(bytes=counted["bytes"] + data["dataLength"]))
        shown = {}
        for visit in ("first visit", "second visit"):
            counted["bytes"] = 0
            page.goto(url)
            page.wait_for_selector(".mosaic img", timeout=20_000)
            shown[f"first picture, {visit} (s)"] = page.evaluate("performance.now()") / 1000
            state(page, "done")
            shown[f"opening, {visit} (MB)"] = counted["bytes"] / 1e6
        set_slider(page, "Images", 4)
        set_slider(page, "Steps", 20)
        page.wait_for_timeout(500)
        counted["bytes"] = 0
        page.click("#run")
        page.wait_for_selector(".stage[data-kind=live][data-state=done]", timeout=600_000)
        shown["a run of 4 x 3 images, 20 steps (MB)"] = counted["bytes"] / 1e6
        browser.close()
    print(json.dumps({name: round(value, 2) for name, value in shown.items()}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
