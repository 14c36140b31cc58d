"""The real models that tests run: they lie where the scripts put them that bring them."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "scripts"))

import fetch_model  # noqa: E402 - it is found by the line above


def real_model():
    """Returns the file of the default model."""
    return _found(pathlib.Path(fetch_model.MEMBER).name, "fetch_model")


def real_encoder():
    """Returns the folder of the encoder."""
    return _found("all-MiniLM-L6-v2", "fetch_encoder")


def _found(name, script):
    path = fetch_model.model_dir() / name
    assert path.exists(), f"there is no {path}: run ./test or scripts/{script}.py first"
    return path
