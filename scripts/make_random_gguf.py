#!/usr/bin/env python3
"""Writes a Llama of random weights, for measuring speed at sizes that no small model has.

    python3 -m venv venv && venv/bin/pip install numpy gguf==0.19.0
    venv/bin/python scripts/make_random_gguf.py OUT.gguf [--type Q8_0] [--layers 16] ...

The tokenizer is 256 bytes and filler. The packages needed are numpy and gguf.
"""

import argparse

import gguf
import numpy as np

# What gguf quantises, and with where their halves begin in a block, which scale it, those that it only reads.
K_QUANTS = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", *K_QUANTS]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--type", default="Q8_0", choices=TYPES)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--feed-forward", type=int, default=5632)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--context", type=int, default=8192)
    o = parser.parse_args()
    kind = gguf.GGMLQuantizationType[o.type]
    kv = o.hidden // o.heads * o.kv_heads
    writer = gguf.GGUFWriter(o.out, "llama")
    writer.add_name(f"random-{o.type}")
    writer.add_block_count(o.layers)
    writer.add_context_length(o.context)
    writer.add_embedding_length(o.hidden)
    writer.add_feed_forward_length(o.feed_forward)
    writer.add_head_count(o.heads)
    writer.add_head_count_kv(o.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(o.hidden // o.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(o.vocabulary)
    characters = bytes_to_characters()
    tokens = [characters[b] for b in range(256)]
    tokens += [f"<filler_{i}>" for i in range(o.vocabulary - 256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * o.vocabulary)
    writer.add_token_merges([f"{characters[97]} {characters[98]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(1)

    def matrix(name, rows, columns):
        # Rows repeat after 256, since drawing a billion numbers takes minutes; speed does not care.
        if o.type in K_QUANTS:
            quantised = random_blocks(random, columns, kind)
        else:
            part = random.standard_normal((256, columns), dtype=np.float32) / np.sqrt(columns)
            quantised = gguf.quants.quantize(part, kind)
        whole = np.concatenate([quantised] * -(-rows // 256))[:rows]
        writer.add_tensor(name, whole, raw_dtype=kind)

    def vector(name, length):
        writer.add_tensor(name, np.ones(length, dtype=np.float32))

    matrix("token_embd.weight", o.vocabulary, o.hidden)
    for i in range(o.layers):
        vector(f"blk.{i}.attn_norm.weight", o.hidden)
        matrix(f"blk.{i}.attn_q.weight", o.hidden, o.hidden)
        matrix(f"blk.{i}.attn_k.weight", kv, o.hidden)
        matrix(f"blk.{i}.attn_v.weight", kv, o.hidden)
        matrix(f"blk.{i}.attn_output.weight", o.hidden, o.hidden)
        vector(f"blk.{i}.ffn_norm.weight", o.hidden)
        matrix(f"blk.{i}.ffn_gate.weight", o.feed_forward, o.hidden)
        matrix(f"blk.{i}.ffn_up.weight", o.feed_forward, o.hidden)
        matrix(f"blk.{i}.ffn_down.weight", o.hidden, o.feed_forward)
    vector("output_norm.weight", o.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(random, columns, kind):
    """Returns 256 rows of blocks of random codes, whose numbers are as wide as those of other types."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if columns % elements:
        raise SystemExit(f"{kind.name} needs rows of a multiple of {elements}, got {columns}")
    blocks = random.integers(0, 256, (256 * columns // elements, size), dtype=np.uint8)

    def scale(factors):
        for place, factor in zip(K_QUANTS[kind.name], factors):
            blocks[:, place:place + 2] = np.array([factor], np.float16).view(np.uint8)
        return gguf.quants.dequantize(blocks, kind)

    # Codes with minima are from 0 on: their half, times the other half, is what the minima take away.
    factors = (1e-3, 1e-3 * (2 ** int(kind.name[1]) - 1) / 2)
    wide = scale(factors).std() * np.sqrt(columns)
    scale([factor / wide for factor in factors])
    return blocks.reshape(256, -1)


def bytes_to_characters():
    """Returns the characters that byte-level BPE writes bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    characters = {b: chr(b) for b in plain}
    characters.update({b: chr(256 + i) for i, b in enumerate(others)})
    return characters


if __name__ == "__main__":
    main()
