"""`./test` says that there is too little disk before it builds anything."""

import subprocess

import pytest

from conftest import ROOT


@pytest.mark.parametrize("wanted, status", [(0, 0), (10**9, 1)])
def test_too_little_disk_is_told_first(tmp_path, wanted, status):
    command = [str(ROOT / "scripts/check-disk"), str(wanted), str(tmp_path / "target")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended
    assert ("GB are free" in ended.stderr) == bool(status)
