#!/usr/bin/env python3
"""Makes the golden logits that the worker's forward pass is tested against.

    python3 -m venv venv && venv/bin/pip install numpy tokenizers
    venv/bin/python make_golden.py MODEL.gguf OUT_DIR

MODEL.gguf is SmolLM2-135M-Instruct Q4_1, the default model. In OUT_DIR it writes

    prompts.json  a list of {"text": ..., "tokens": [...]}, eight prompts of 8 to about 400 tokens
    logits.f16    8 rows x 49152 little-endian float16, row-major: for each prompt, the logits that
                  follow its last token
    long_logits.f16
                  17 rows of the same kind: what follows the first 500, 1,000 and so on to 8,000, and
                  8,100 tokens of a prompt made of pieces of the others

and prints each prompt's likeliest next token with its lead over the second. All weights are
dequantised to float32 and the forward pass runs in float32, so the rows show what the quantised
file means, free of any kernel's own rounding. Another BLAS may sum in another order; the last bit
of a float16 may then differ.

The packages needed are numpy and tokenizers.
"""

import json
import pathlib
import struct
import sys

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# Lengths at which the long prompt is compared; the model can take 8,192 tokens.
LONG = [*range(500, 8001, 500), 8100]

PROMPTS = [
    # A fact, about 8 tokens.
    "The capital of France is the city of",
    # Numbers, about 20 tokens: every digit is a token of its own.
    "1, 2, 4, 8, 16, 32, ",
    # A list, about 30 tokens.
    "Days of the week, in order:\n- Monday\n- Tuesday\n- Wednesday\n- Thursday\n- Friday\n"
    "- Saturday\n-",
    # A chat in ChatML, about 60 tokens.
    "<|im_start|>system\nYou answer briefly and politely, in one or two plain "
    "sentences.<|im_end|>\n"
    "<|im_start|>user\nHello! Which planet do people call the red planet, and is it larger or "
    "smaller than the Earth?<|im_end|>\n"
    "<|im_start|>assistant\nThe red planet is Mars, and it is smaller than the",
    # Code, about 100 tokens.
    "def median(values):\n"
    '    """Return the middle value of a list of numbers."""\n'
    "    ordered = sorted(values)\n"
    "    middle = len(ordered) // 2\n"
    "    if len(ordered) % 2 == 1:\n"
    "        return ordered[middle]\n"
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n\n\n"
    "def mean(values):\n"
    '    """Return the average of a list of numbers."""\n'
    "    return sum(values) /",
    # French, about 160 tokens: accents, and words split into many pieces.
    "Le vieux phare se dressait au bout de la jetée, là où la mer devenait presque noire. Chaque "
    "soir, Élodie montait les cent marches pour allumer la lampe, puis elle s'asseyait près de la "
    "fenêtre et regardait passer les bateaux. « Où vont-ils ? » demandait son frère. Elle ne "
    "savait pas répondre, mais elle imaginait des ports lointains, des marchés pleins d'épices et "
    "des fêtes jusqu'au bout de la nuit. Et chaque soir, Élodie montait les cent marches pour "
    "allumer la",
    # Records with figures and several scripts, about 250 tokens.
    "Shipment log, station 7\n\n"
    "| id | date       | goods       | kg     | to        |\n"
    "|----|------------|-------------|--------|-----------|\n"
    "| 01 | 2021-03-04 | olive oil   | 120.50 | Αθήνα     |\n"
    "| 02 | 2021-03-05 | green tea   |  48.25 | 東京      |\n"
    "| 03 | 2021-03-09 | rye flour   | 310.00 | Москва    |\n"
    "| 04 | 2021-03-11 | dates       |  75.75 | القاهرة   |\n\n"
    "Notes: crate 02 arrived damp & was re-packed; crate 03 was 4.5% over weight. Total: 554.50 "
    "kg. The heaviest of the four shipments was number",
    # Prose, about 400 tokens.
    "When the mill at Harrow Bend closed, nobody in the village expected the clock above its gate "
    "to keep running. It had been wound every Sunday for eighty years by a man named Tobias "
    "Wren, who was paid two coins and a loaf of bread for the trouble. The owners locked the "
    "doors in October, sold the looms to a firm on the coast, and sent Tobias a short letter "
    "which thanked him for his service and told him that he need not come again.\n\n"
    "He came anyway. On the first Sunday after the closing he walked down the lane with his "
    "ladder on his shoulder, leaned it against the wall, and climbed. The children who had "
    "followed him saw the hands shiver and then settle. He oiled the wheels, wiped the glass with "
    "his sleeve, and climbed down again. When the baker asked him why he bothered, Tobias said "
    "that a clock does not know who owns it.\n\n"
    "The winter was hard that year. Snow filled the lane, and the river froze from bank to bank. "
    "People who had worked at the mill went looking for places in the town, and those who stayed "
    "grew quiet. But they noticed that they still looked up when they passed the gate, and that "
    "the time was right. A woman who had lost her position set her kitchen by it. The school rang "
    "its bell by it. The doctor, who had a fine gold watch of his own, was once seen to stop in "
    "the road, take it out, and correct it.\n\n"
    "In spring a stranger arrived, wearing a grey coat and carrying a leather case full of papers. "
    "She had bought the mill, she said, and meant to open it again, but she had one question "
    "before she signed anything. She wanted to know who had been winding the clock. "
    "The baker told her about the old man with the ladder, and what he had said: that a clock does "
    "not know who owns",
]


def read_gguf(path: pathlib.Path) -> tuple[dict, dict]:
    """Returns a GGUF file's metadata and its tensors, these dequantised to float32."""
    data = path.read_bytes()
    position = 0
    scalars = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}

    def scalar(code: str):
        nonlocal position
        (value,) = struct.unpack_from("<" + code, data, position)
        position += struct.calcsize(code)
        return value

    def string() -> str:
        nonlocal position
        length = scalar("Q")
        position += length
        return data[position - length : position].decode()

    def value(kind: int):
        if kind == 8:
            return string()
        if kind == 9:
            element, count = scalar("I"), scalar("Q")
            return [value(element) for _ in range(count)]
        return scalar(scalars[kind])

    magic, version = scalar("I"), scalar("I")
    if magic != int.from_bytes(b"GGUF", "little") or version != 3:
        sys.exit(f"{path} is no GGUF file of version 3")
    tensor_count, metadata_count = scalar("Q"), scalar("Q")
    metadata = {}
    for _ in range(metadata_count):
        key = string()
        metadata[key] = value(scalar("I"))
    infos = []
    for _ in range(tensor_count):
        name = string()
        dims = [scalar("Q") for _ in range(scalar("I"))]
        infos.append((name, dims, scalar("I"), scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-position // alignment) * alignment
    tensors = {
        name: dequantise(data, start + offset, dims, kind) for name, dims, kind, offset in infos
    }
    return metadata, tensors


def dequantise(data: bytes, offset: int, dims: list[int], kind: int) -> np.ndarray:
    """Returns one tensor as float32; GGUF names the fastest-running dimension first."""
    count = int(np.prod(dims))
    if kind == 0:  # F32
        flat = np.frombuffer(data, "<f4", count, offset)
    elif kind == 3:  # Q4_1: 32 weights as scale, minimum and 4-bit codes; low nibbles come first
        block = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", 16)])
        blocks = np.frombuffer(data, block, count // 32, offset)
        codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1)
        scale = blocks["scale"].astype(np.float32)[:, None]
        flat = codes.astype(np.float32) * scale + blocks["minimum"].astype(np.float32)[:, None]
    elif kind == 8:  # Q8_0: 32 weights as scale and signed bytes
        block = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
        blocks = np.frombuffer(data, block, count // 32, offset)
        flat = blocks["codes"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
    else:
        sys.exit(f"tensor type {kind} is not one that this script reads")
    return flat.reshape(dims[::-1])


def make_tokenizer(metadata: dict) -> Tokenizer:
    """Returns SmolLM2's tokenizer: byte-level BPE in which every digit stands alone."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: np.float32) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Applies RoPE to [position, head, dimension]; the pairs are (0, 1), (2, 3) and so on."""
    even, odd = x[..., 0::2], x[..., 1::2]
    rotated = np.empty_like(x)
    rotated[..., 0::2] = even * cos - odd * sin
    rotated[..., 1::2] = even * sin + odd * cos
    return rotated


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention; each head of k and v serves a group of neighbouring heads of q.

    Some queries at a time, so that a long text's scores fit into memory.
    """
    length, heads, size = q.shape
    group = heads // k.shape[1]
    q = q.transpose(1, 0, 2)
    k = k.transpose(1, 0, 2).repeat(group, axis=0)
    v = v.transpose(1, 0, 2).repeat(group, axis=0)
    mixed = np.empty_like(q)
    for start in range(0, length, 512):
        end = min(start + 512, length)
        scores = q[:, start:end] @ k[:, :end].transpose(0, 2, 1) / np.float32(np.sqrt(size))
        scores[:, np.triu(np.ones((end - start, end), bool), start + 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed[:, start:end] = weights @ v[:, :end]
    return mixed.transpose(1, 0, 2).reshape(length, heads * size)


def forward(metadata: dict, tensors: dict, tokens: list[int], wanted: list[int]) -> np.ndarray:
    """Returns the logits, [wanted, vocabulary], that follow the tokens at the wanted positions."""
    heads = metadata["llama.attention.head_count"]
    kv_heads = metadata["llama.attention.head_count_kv"]
    size = metadata["llama.rope.dimension_count"]
    epsilon = np.float32(metadata["llama.attention.layer_norm_rms_epsilon"])
    frequencies = metadata["llama.rope.freq_base"] ** (-np.arange(0, size, 2) / size)
    angles = np.arange(len(tokens))[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    x = tensors["token_embd.weight"][tokens]
    for layer in range(metadata["llama.block_count"]):
        weight = {
            part: tensors[f"blk.{layer}.{part}.weight"]
            for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
                         "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        }
        h = rms_norm(x, weight["attn_norm"], epsilon)
        q = rotate((h @ weight["attn_q"].T).reshape(-1, heads, size), cos, sin)
        k = rotate((h @ weight["attn_k"].T).reshape(-1, kv_heads, size), cos, sin)
        v = (h @ weight["attn_v"].T).reshape(-1, kv_heads, size)
        x = x + attention(q, k, v) @ weight["attn_output"].T

        h = rms_norm(x, weight["ffn_norm"], epsilon)
        gate = h @ weight["ffn_gate"].T
        gate = gate / (1 + np.exp(-gate))
        x = x + (gate * (h @ weight["ffn_up"].T)) @ weight["ffn_down"].T
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    return rms_norm(x[wanted], tensors["output_norm.weight"], epsilon) @ head.T


def make_long(texts: list[list[int]]) -> list[int]:
    """Returns the long prompt: pieces of the others, as `tests/parity/exactness.rs` cuts them too."""
    tokens, state = [], 1
    while len(tokens) < LONG[-1]:
        state = (state * 1103515245 + 12345) % 2**31
        text = texts[(state >> 8) % len(texts)]
        start = (state >> 12) % len(text)
        tokens += text[start : start + 16]
    return tokens[: LONG[-1]]


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: make_golden.py MODEL.gguf OUT_DIR")
    out = pathlib.Path(sys.argv[2])
    metadata, tensors = read_gguf(pathlib.Path(sys.argv[1]))
    tokenizer = make_tokenizer(metadata)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    known = forward(metadata, tensors, encode("The capital of France is"), [-1])[0]
    if (answer := tokenizer.decode([int(known.argmax())])) != " Paris":
        sys.exit(f"the forward pass is wrong: the capital of France is{answer!r}")

    lines, rows = [], []
    for text in PROMPTS:
        tokens = encode(text)
        (row,) = forward(metadata, tensors, tokens, [-1])
        lines.append(json.dumps({"text": text, "tokens": tokens}))
        rows.append(row.astype("<f2"))
        second, first = np.argsort(row)[-2:]
        names = tokenizer.decode([int(first)]), tokenizer.decode([int(second)])
        lead = row[first] - row[second]
        print(f"{len(tokens):4} tokens, next {names[0]!r}, {lead:.3f} before {names[1]!r}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    (out / "logits.f16").write_bytes(np.stack(rows).tobytes())

    long = make_long([json.loads(line)["tokens"] for line in lines])
    rows = forward(metadata, tensors, long, [length - 1 for length in LONG])
    (out / "long_logits.f16").write_bytes(rows.astype("<f2").tobytes())


if __name__ == "__main__":
    main()
