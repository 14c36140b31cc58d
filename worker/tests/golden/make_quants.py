#!/usr/bin/env python3
"""Makes the golden rows that the worker's reading of stored weights is tested against.

    python3 -m venv venv && venv/bin/pip install gguf
    venv/bin/python make_quants.py OUT_DIR

In OUT_DIR it writes quants.bin: for each type of weights a header, the stored bytes of two rows of
512 random numbers, and these numbers as little-endian float32, as the package gguf understands the
bytes. The header is the type's name in 8 bytes, filled up with zeros, and then as little-endian
32-bit numbers: the type's number in a GGUF file, the elements and the bytes of a block, rows,
columns.
"""

import pathlib
import struct
import sys

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where a block has its halves: the scales, which have to be finite.
HALVES = {
    "F32": [], "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
    "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
ROWS, COLUMNS = 2, 512


def stored(name, kind, rng):
    """Returns the bytes of some random rows, [rows, bytes]."""
    elements, size = GGML_QUANT_SIZES[kind]
    blocks = COLUMNS // elements
    if name in ("F32", "BF16"):
        numbers = rng.standard_normal((ROWS, COLUMNS)).astype("<f4")
        return numbers.view(np.uint8) if name == "F32" else np.ascontiguousarray(
            numbers.view("<u2")[:, 1::2]).view(np.uint8)
    data = rng.integers(0, 256, (ROWS, blocks, size), dtype=np.uint8)
    for at in HALVES[name]:
        # From the subnormal halves to the large ones, of both signs.
        exponents = rng.integers(-22, 6, (ROWS, blocks))
        halves = (rng.standard_normal((ROWS, blocks)) * 2.0**exponents).astype("<f2")
        data[:, :, at:at + 2] = halves.view(np.uint8).reshape(ROWS, blocks, 2)
    return data.reshape(ROWS, -1)


def main():
    rng = np.random.default_rng(1)
    out = b""
    for name in HALVES:
        kind = GGMLQuantizationType[name]
        data = stored(name, kind, rng)
        view = {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)
        numbers = dequantize(data.view(view), kind).astype("<f4")
        assert numbers.shape == (ROWS, COLUMNS) and np.isfinite(numbers).all(), name
        out += name.encode().ljust(8, b"\0")
        out += struct.pack("<5I", kind.value, *GGML_QUANT_SIZES[kind], ROWS, COLUMNS)
        out += data.tobytes() + numbers.tobytes()
    pathlib.Path(sys.argv[1], "quants.bin").write_bytes(out)


if __name__ == "__main__":
    main()
