"""What the browser tests share: how to start Chromium, open the page and work its controls."""

from __future__ import annotations

from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
STEP = 0.05  # seconds that an evaluation of the slowed model takes


def script(name: str) -> str:
    """The JavaScript function that ``page.evaluate`` takes, from ``scripts``."""
    return (Path(__file__).parent / "scripts" / f"{name}.js").read_text()


def watch(page, url: str) -> list[str]:
    """The growing list of what must not happen: errors, warnings, dialogs, requests to anyone but ``url``."""
    troubles = []
    page.on("console", lambda message: message.type in ("error", "warning") and troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or troubles.append(request.url))
    return troubles


def open_page(page, url, theme="light", query="", expected="idle"):
    page.goto(f"{url}/?__theme={theme}{query}")
    page.wait_for_selector(f".stage[data-state={expected}]")
    page.wait_for_function("document.querySelector('#prompt input, #prompt textarea')?.disabled === false")


def set_slider(page, label, value):
    box = page.get_by_label(f"number input for {label}")
    box.fill(str(value))
    box.blur()


def state(page, name, seconds=30):
    page.wait_for_selector(f".stage[data-state={name}]", timeout=1000 * seconds)
