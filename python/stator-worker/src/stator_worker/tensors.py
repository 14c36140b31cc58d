"""Tensors of the protocol as numpy's arrays, and back.

Data of fixed size is not copied on its way in: such an array is read-only. BF16, which numpy does
not have, comes as its bits, `uint16`; BYTES is an array of `bytes` objects.
"""

import numpy as np

from . import wire
from .errors import Internal, InvalidRequest

DTYPES = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}


def read(tensor, data):
    """Returns a tensor of a request as an array."""
    try:
        if any(length < 0 for length in tensor.shape):
            raise ValueError("a length is negative")
        if tensor.datatype == "BYTES":
            return _elements(data).reshape(tensor.shape)
        return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(tensor.shape)
    except KeyError:
        text = f"tensor `{tensor.name}`: `{tensor.datatype}` is no datatype"
        raise InvalidRequest(text) from None
    except ValueError:
        raise InvalidRequest(
            f"tensor `{tensor.name}`: expected {tensor.datatype} {list(tensor.shape)}, got "
            f"{len(data)} bytes") from None


def read_all(tensors, contents):
    """Returns tensors by their names, each with the next of `contents`."""
    return {tensor.name: read(tensor, data) for tensor, data in zip(tensors, contents)}


def _elements(data):
    elements, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at:at + 4], "little")
        if end > len(data):
            raise ValueError("an element is cut off")
        elements.append(data[at + 4:end])
        at = end
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def write(name, value, datatype=None):
    """Returns an output as a tensor of the protocol and its data.

    Lists and numbers become what is declared; an array has to be of the declared type already.
    """
    if datatype == "BYTES" or datatype is None and _is_text(value):
        array, data = _bytes(name, value)
        return wire.worker.Tensor(name=name, datatype="BYTES", shape=array.shape), data
    is_array = isinstance(value, (np.ndarray, np.generic))
    try:
        array = np.asarray(value, None if is_array or datatype is None else DTYPES[datatype])
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise Internal(f"output `{name}`: expected {datatype}, got {kind}") from error
    datatype = datatype or DATATYPES.get(array.dtype.newbyteorder("<"))
    expected = DTYPES.get(datatype)
    # Two bytes of another library's bfloat16 are as good as their bits.
    is_bits = datatype == "BF16" and array.dtype.itemsize == 2 and array.dtype.kind in "uV"
    if expected is None or not is_bits and array.dtype.newbyteorder("<") != expected:
        raise Internal(f"output `{name}`: expected {datatype}, got an array of {array.dtype}")
    if not is_bits:
        array = array.astype(expected, copy=False)
    tensor = wire.worker.Tensor(name=name, datatype=datatype, shape=array.shape)
    return tensor, array.tobytes()


def _is_text(value):
    return np.asarray(value).dtype.kind in "OSU"


def _bytes(name, value):
    array = np.asarray(value, object)
    parts = []
    for element in array.reshape(-1):
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            kind = type(element).__name__
            raise Internal(f"output `{name}`: expected BYTES, got an element of type {kind}")
        parts += [len(element).to_bytes(4, "little"), element]
    return array, b"".join(parts)
