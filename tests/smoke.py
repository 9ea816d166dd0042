"""``python -m tests.smoke URL``: wait for a running app, run one comparison through its API, check what comes back."""

from __future__ import annotations

import sys
import time

from gradio_client import Client


def connect(url: str, patience: float = 120.0) -> Client:
    """A client of the app, once it answers."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return Client(url, verbose=False)
        except Exception:  # not up yet, in one of many ways; the deadline raises the last one
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def main(url: str) -> None:
    client = connect(url)
    result = client.predict(prompt="a person with glasses", images=2, steps=4, api_name="/compare")
    print(result)
    print(client.predict(api_name="/schedules"))


if __name__ == "__main__":
    main(sys.argv[1])
