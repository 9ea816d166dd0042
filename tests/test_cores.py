"""The settings of threads: there before torch is loaded, and never against what the environment says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aig import cores


def test_threads_sleep_soon_unless_the_environment_says_how_they_wait(monkeypatch):
    for name in cores.WAITING:
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as told:
        told.setenv("GOMP_SPINCOUNT", "7")
        cores.settle()
        assert [name for name in cores.WAITING if name in cores.os.environ] == ["GOMP_SPINCOUNT"]
    for name in cores.WAITING:  # so that they are taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    cores.settle()
    assert all(name in cores.os.environ for name in cores.WAITING)


@pytest.mark.parametrize("module", ["aig.__main__", "aig.world.__main__"])
def test_commands_can_settle_before_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_app_settles_before_torch():
    code = "import sys, aig.cores as c; c.settle = lambda: sys.exit('torch' in sys.modules); import app"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
