"""`./test` checks the kernels of the other processor, and says so where it cannot."""

import os
import subprocess

import pytest

from conftest import ROOT


@pytest.mark.parametrize("is_installed, has_errors", [(False, False), (True, False), (True, True)])
def test_a_missing_target_is_a_note_and_an_error_in_a_kernel_is_one(tmp_path, is_installed, has_errors):
    library, called = tmp_path / "lib", tmp_path / "called"
    library.mkdir()
    if is_installed:
        (library / "libstd-0.rlib").touch()
    tools = {"rustc": f"echo {library}", "cargo": f"echo $* >{called}; exit {int(has_errors)}"}
    for name, script in tools.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run([ROOT / "scripts/check-other-kernels"], capture_output=True, text=True, check=False,
                           env={**os.environ, "PATH": path})
    assert ended.returncode == int(has_errors), ended
    assert ("NOT CHECKED" in ended.stderr) != is_installed, ended
    assert called.exists() == is_installed
    if is_installed:
        assert "-p stator-worker" in called.read_text() and "aarch64" in called.read_text()
