"""The public face: two names, and nothing heavy before they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aig


def test_importing_it_imports_nothing_heavy():
    code = "import aig, sys; assert not {'torch', 'numpy', 'diffusers', 'gradio'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_has_two_names_and_types():
    assert set(aig.__all__) == {"annealed", "shares"} and all(callable(getattr(aig, name)) for name in aig.__all__)
    assert aig.shares("power_2", 4) == (0, 1 / 16, 4 / 16, 9 / 16)
    assert (Path(aig.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="'mixed'"):
        aig.mixed  # noqa: B018
