#!/usr/bin/env python3
"""Brings real models' chat templates to .tools/templates and prints that folder.

They lie in the source package of `llama-cpp-python` (MIT), which pip fetches (77 MB) and which is
checked against its SHA-256. They are other people's files and are not kept in this repository.
"""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TARGET = pathlib.Path(__file__).parents[1] / ".tools/templates" / VERSION


def fetch(scratch: pathlib.Path) -> None:
    """Downloads the package and puts its templates at the target, all or none."""
    print(f"fetching {PACKAGE}=={VERSION} (77 MB) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(scratch)]
    if subprocess.run([*command, f"{PACKAGE}=={VERSION}"], stdout=sys.stderr).returncode:
        sys.exit("pip could not fetch the chat templates")
    package = next(scratch.glob("*.tar.gz"))
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"the templates' package has SHA-256 {digest}, expected {SHA256}")
    part = scratch / "templates"
    part.mkdir()
    with tarfile.open(package) as archive:
        for member in archive:
            path = pathlib.PurePosixPath(member.name)
            if path.suffix == ".jinja" and path.parent.name == "templates":
                (part / path.name).write_bytes(archive.extractfile(member).read())
    shutil.move(part, TARGET)


def main() -> None:
    if not TARGET.is_dir():
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=TARGET.parent) as scratch:
            fetch(pathlib.Path(scratch))
    print(TARGET)


if __name__ == "__main__":
    main()
