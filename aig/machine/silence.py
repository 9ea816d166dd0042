"""The libraries' voices."""

from __future__ import annotations

import os


def quiet() -> None:
    """Keep the libraries' advice and progress bars, and prompts that they quote, out of the log; errors still appear."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
