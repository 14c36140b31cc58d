"""`./test` says that there is too little disk before it builds anything."""

import os
import subprocess

import pytest

from conftest import ROOT


def check(wanted, folder, **options):
    command = [str(ROOT / "scripts/check-disk"), str(wanted), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("wanted, status", [(0, 0), (10**9, 1)])
def test_too_little_disk_is_told_first(tmp_path, wanted, status):
    ended = check(wanted, tmp_path / "target")
    assert ended.returncode == status, ended
    assert ("GB are free" in ended.stderr) == bool(status)


@pytest.mark.parametrize("free, used, status, told", [
    (30, 0, 0, ""),
    (4, 20, 0, ""),
    (4, 15, 1, "takes up to 20 GB of disk, and 4 GB are free beside the 15 GB in"),
    (1.9, 40, 1, "takes at least 2 GB of disk, and 1 GB are free beside"),
])
def test_a_used_folder_needs_some_room_and_may_change(tmp_path, free, used, status, told):
    # A `du` before which a file vanished counts the others and fails.
    tools = {"df": f"printf 'Filesystem\\ndisk 1 1 {int(free * 10**6)} 1%% /\\n'",
             "du": f"printf '{int(used * 10**6)}\\tfolder\\n'; echo 'du: cannot access' >&2; exit 1"}
    for name, script in tools.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ended = check(20, tmp_path / "target", env={**os.environ, "PATH": path})
    assert (ended.returncode, told in ended.stderr) == (status, True), ended
    assert "cannot access" not in ended.stderr
