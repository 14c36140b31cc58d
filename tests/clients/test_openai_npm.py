"""OpenAI's own npm client: the tests are in npm/openai.test.mjs."""

import os
import pathlib
import shutil
import subprocess

from conftest import ROOT

HERE = pathlib.Path(__file__).parent / "npm"
FOLDER = ROOT / ".tools" / "openai-npm"
INSTALL_SECONDS = 900
TEST_SECONDS = 600


def installed():
    """Installs what package-lock.json names, once, outside of the sources."""
    missing = [tool for tool in ("node", "npm") if not shutil.which(tool)]
    assert not missing, f"{' and '.join(missing)} not found: scripts/setup-clients installs them"
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = (HERE / "package-lock.json").read_bytes()
    mark = FOLDER / "node_modules" / "installed"
    if not mark.is_file() or mark.read_bytes() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, FOLDER / name)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel", "error"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False,
                              timeout=INSTALL_SECONDS)
        assert done.returncode == 0, done.stderr
        mark.write_bytes(lock)
    shutil.copy(HERE / "openai.test.mjs", FOLDER / "openai.test.mjs")
    return FOLDER


def test_the_npm_client(scripted):
    folder = installed()
    environment = {**os.environ, "STATOR_URL": f"http://{scripted.http}/v1"}
    done = subprocess.run(["node", "--test", "--test-reporter=tap", "openai.test.mjs"], cwd=folder,
                          env=environment, capture_output=True, text=True, check=False,
                          timeout=TEST_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 0" not in done.stdout and "# skipped 0" in done.stdout, done.stdout
