"""The settings of threads: there before torch is loaded, and never against what the environment says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aig.machine import cores


@pytest.mark.parametrize(("available", "threads"), [(1, "2"), (2, "4"), (4, "8"), (64, None)])
def test_threads_sleep_while_they_wait_and_few_cores_have_two_each(monkeypatch, available, threads):
    environment: dict[str, str] = {}
    monkeypatch.setattr(cores.os, "environ", environment)
    monkeypatch.setattr(cores, "available", lambda: available)
    cores.settle()
    assert environment["OMP_WAIT_POLICY"] == "passive" and environment.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize("name", cores.SETTINGS)
def test_what_the_environment_says_stays(monkeypatch, name):
    environment = {name: "3"}
    monkeypatch.setattr(cores.os, "environ", environment)
    cores.settle()
    assert environment == {name: "3"}


@pytest.mark.parametrize("module", ["aig.__main__", "aig.world.__main__"])
def test_commands_can_settle_before_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_app_settles_before_torch():
    code = "import sys, aig.machine.cores as c; c.settle = lambda: sys.exit('torch' in sys.modules); import app"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
