#!/usr/bin/env python3
"""Makes tiny random models of each family and what `transformers` computes of them.

    python make_tiny_models.py OUT

writes OUT/NAME/ (a directory as Hugging Face publishes it), OUT/NAME.gguf (the same model) and
OUT/NAME.json with OUT/NAME.f32: prompts, and rows of logits for them, as little-endian f32.

Needs torch, transformers (4.57), tokenizers and gguf; made with Debian 13's python3-torch 2.6.
Weights and logits are f32 throughout, on the CPU, with fixed seeds.
"""

import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 128
# More than one block of the cache, the original contexts and Mistral's window.
LONG = 96
ROWS = [0, 1, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 63, 64, 80, 95]
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    bos_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=False,
    attn_implementation="eager",
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
MODELS = {
    "llama3": ("Llama", dict(head_dim=16, rope_scaling=LLAMA3)),
    "llama-tied": (
        "Llama",
        dict(
            num_key_value_heads=4,
            tie_word_embeddings=True,
            rope_scaling=dict(rope_type="linear", factor=2.0),
        ),
    ),
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=24)),
    "qwen2": ("Qwen2", dict(rope_theta=1000000.0)),
    "qwen3": ("Qwen3", dict(head_dim=16, rope_scaling=YARN)),
}


def tokenizer():
    """A byte-level tokenizer of printable ASCII: VOCABULARY tokens, three of them special."""
    tokens = ["<s>", "</s>", "<|turn|>", "\u010a", "\u0120"] + [chr(c) for c in range(33, 127)]
    merges = [
        ("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("e", "r"), ("a", "n"),
        ("o", "n"), ("r", "e"), ("\u0120", "a"), ("an", "d"), ("\u0120", "and"), ("o", "r"),
        ("e", "n"), ("\u0120", "o"), ("\u0120o", "f"), ("s", "t"), ("i", "s"), ("\u0120", "is"),
        ("in", "g"), ("a", "t"), ("\u0120", "t"), ("\u0120t", "o"), ("e", "s"), ("a", "r"),
    ]
    tokens += [left + right for left, right in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens) <= VOCABULARY
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    return made, tokens, merges


def write_tokenizer(path, made):
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    made.save(str(path / "tokenizer.json"), pretty=False)
    settings = dict(
        bos_token="<s>", eos_token="</s>", add_bos_token=False, chat_template=template
    )
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    generation = dict(bos_token_id=0, eos_token_id=[1, 2])
    (path / "generation_config.json").write_text(json.dumps(generation, indent=1))


def make(family, changes, seed):
    config = getattr(transformers, f"{family}Config")(**(COMMON | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif "head" in name or ("embed" in name and config.tie_word_embeddings):
                # Logits of up to 1, since errors are measured absolutely.
                parameter.copy_(0.05 * noise)
            elif "embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                # What is added to the residual is small beside it, as in trained models: keys and
                # values that a cache rounds to f16 shall not change everything behind them.
                is_added = "o_proj" in name or "down_proj" in name
                small = 0.005 if config.tie_word_embeddings else 0.05
                parameter.copy_((small if is_added else 0.2) * noise)
    return model


def golden(path, model, seed):
    generator = np.random.default_rng(seed)
    prompts, rows, logits = [], [], []
    for length, wanted in [(LONG, ROWS), (7, list(range(7)))]:
        prompt = generator.integers(0, VOCABULARY, length).tolist()
        with torch.no_grad():
            out = model(torch.tensor([prompt])).logits[0]
        prompts.append(prompt)
        rows.append(wanted)
        logits.append(out[wanted].numpy())
    path.with_suffix(".json").write_text(json.dumps(dict(prompts=prompts, rows=rows)))
    path.with_suffix(".f32").write_bytes(np.concatenate(logits).astype("<f4").tobytes())


def llama3_factors(config):
    scaling, dim = config.rope_scaling, config.head_dim
    frequencies = config.rope_theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / scaling["factor"])).astype(np.float32)


def to_gguf(path, model, tokens, merges):
    """Writes the model as llama.cpp's converter does."""
    config = model.config
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(path.stem)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(VOCABULARY)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    padding = [f"[PAD{index}]" for index in range(len(tokens), VOCABULARY)]
    writer.add_token_list(tokens + padding)
    kinds = [3] * 3 + [1] * (len(tokens) - 3) + [5] * len(padding)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = value.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = data.shape[0] // head_dim
            data = data.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    out = Path(sys.argv[1])
    made, tokens, merges = tokenizer()
    for seed, (name, (family, changes)) in enumerate(MODELS.items(), 1):
        path = out / name
        path.mkdir(parents=True, exist_ok=True)
        model = make(family, changes, seed)
        shards = dict(max_shard_size="60KB") if name == "qwen2" else {}
        model.save_pretrained(path, **shards)
        write_tokenizer(path, made)
        golden(path, model, seed)
        to_gguf(out / f"{name}.gguf", model, tokens, merges)
        print(name, "logits of", golden_range(path))


def golden_range(path):
    logits = np.fromfile(path.with_suffix(".f32"), "<f4")
    return f"{logits.min():.2f} to {logits.max():.2f}"


if __name__ == "__main__":
    main()
