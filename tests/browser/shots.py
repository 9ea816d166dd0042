"""``python -m tests.browser.shots URL FOLDER``: run the first example on a running app and photograph it at three sizes."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.driving import CHROMIUM, FLAGS

SIZES = {"phone": (390, 844), "laptop": (1366, 768), "projector": (1920, 1080)}


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for theme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(f"{url}/?__theme={theme}")
                page.wait_for_selector(".stage[data-state=idle]")
                page.wait_for_function("document.querySelector('#prompt input, #prompt textarea')?.disabled === false")
                page.click("#run")
                page.wait_for_selector(".stage[data-state=done]", timeout=120_000)
                page.screenshot(path=folder / f"{name}-{theme}.png")
                page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
