"""``python -m tests.browser.shots URL FOLDER``: photograph a running app, as it opens, after a run, and on stage."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.driving import CHROMIUM, FLAGS

SIZES = {"phone": (390, 844), "laptop": (1366, 768), "projector": (1920, 1080)}
RUN_MS = 300_000  # a run on a busy machine


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for theme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
                page.goto(f"{url}/?__theme={theme}")
                page.wait_for_selector(".stage[data-kind=recorded][data-state=done]")
                page.screenshot(path=folder / f"opened-{name}-{theme}.png")
                page.wait_for_function("document.querySelector('#prompt input, #prompt textarea')?.disabled === false")
                page.click("#run")
                page.wait_for_selector(".stage[data-kind=live][data-state=done]", timeout=RUN_MS)
                page.wait_for_timeout(500)  # the progress bar arrives
                page.screenshot(path=folder / f"{name}-{theme}.png")
                page.locator(".arm.aig .cells button").first.click()
                page.screenshot(path=folder / f"viewer-{name}-{theme}.png")
                page.keyboard.press("Escape")
                page.keyboard.press("p")
                page.wait_for_timeout(300)
                page.screenshot(path=folder / f"presenter-{name}-{theme}.png")
                page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
