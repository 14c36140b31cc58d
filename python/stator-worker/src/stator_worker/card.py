"""What a worker registers for one model: its card, as the JSON that frontends read."""

import base64
import hashlib

from . import wire

CARD_VERSION = 1
MAX_NAME_BYTES = 256


class Card:
    """A model's card, and the files that it names by the hashes of their content."""

    def __init__(self, name, kind, input):
        if not 1 <= len(name.encode()) <= MAX_NAME_BYTES or not name.isprintable():
            raise ValueError(f"a model's name: expected 1 to {MAX_NAME_BYTES} bytes, got {name!r}")
        self.json = {"version": CARD_VERSION, "name": name, "kind": kind, "input": input}
        self.files = {}

    def name_file(self, name, content):
        """Names a file that frontends fetch."""
        digest = hashlib.sha256(content).hexdigest()
        entry = {"name": name, "sha256": digest, "bytes": len(content)}
        self.json.setdefault("artifacts", []).append(entry)
        self.files[digest] = content

    def set_tokenizer(self, tokenizer, context_length):
        """Says how texts become tokens."""
        length = context_length or tokenizer.context_length
        if not length:
            raise ValueError(f"model `{self.json['name']}`: expected a `context_length`, got none")
        self.json["context_length"] = length
        self.json["eos_tokens"] = list(tokenizer.eos_tokens)
        self.name_file("vocabulary", tokenizer.content)

    def set_tensors(self, config):
        """Says what tensors go in and out."""
        # In the order of keys, since frontends compare the bytes.
        data = config.SerializeToString(deterministic=True)
        self.json["tensor_config"] = base64.b64encode(data).decode()


def tensor_config(name, inputs, outputs, max_batch_size, is_decoupled, has_sequences):
    """Makes a Triton ModelConfig of tensors that are written as `{"NAME": ("FP32", [-1])}`."""
    triton = wire.triton
    config = triton.ModelConfig(name=name, backend="python", max_batch_size=max_batch_size)
    for target, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor, (datatype, shape) in tensors.items():
            kind = "STRING" if datatype == "BYTES" else datatype
            try:
                number = triton.number("DataType", f"TYPE_{kind}")
            except KeyError:
                raise ValueError(f"tensor `{tensor}`: `{datatype}` is no datatype") from None
            target.add(name=tensor, data_type=number, dims=shape)
    config.model_transaction_policy.decoupled = is_decoupled
    if has_sequences:
        config.sequence_batching.SetInParent()
    return config


def datatypes(tensors):
    """Returns the datatype of each tensor of a ModelConfig by its name."""
    names = {wire.triton.number("DataType", f"TYPE_{kind}"): kind for kind in _KINDS}
    found = {tensor.name: names.get(tensor.data_type) for tensor in tensors}
    return {name: "BYTES" if kind == "STRING" else kind for name, kind in found.items()}


_KINDS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
          "BF16", "FP32", "FP64", "STRING")
