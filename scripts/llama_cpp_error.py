#!/usr/bin/env python3
"""Measures how far llama.cpp's logits are from those of an f32 forward pass.

    python3 -m venv venv && CC=clang CXX=clang++ CMAKE_ARGS="-DGGML_NATIVE=ON" \\
        venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 numpy tokenizers
    venv/bin/python scripts/llama_cpp_error.py MODEL.gguf [--golden worker/tests/golden] [--long 4000]

MODEL.gguf is SmolLM2-135M-Instruct Q4_1, which `worker/tests/golden/make_golden.py` ran. Prints the root-mean-square error of the
logits and their Kullback-Leibler divergence, in nats: behind each of its prompts; behind every token of them, where the exact logits are
computed anew, with at how many another token is the best one; and behind the first 500, 1,000 and so on tokens of the long one. The
figures of `worker/tests/parity/exactness.rs` and docs/engine.md that are called llama.cpp's come from here; with another processor,
compiler or version they are others. Why clang: `bench_llama_cpp.py` says it.

--golden   the directory with prompts.json, logits.f16 and long_logits.f16
--long     how many tokens of the long prompt (default: 8100, all)
--threads  threads of llama.cpp (default: 2)
"""

import argparse
import json
import pathlib
import sys

import llama_cpp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "worker/tests/golden"))
import make_golden


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def distance(ours, exact):
    """Returns the error and the divergence of a row of logits."""
    p, q = log_softmax(exact), log_softmax(ours)
    return np.sqrt(np.mean((ours - exact) ** 2)), float(np.sum(np.exp(p) * (p - q)))


def last_logits(model, vocabulary):
    """Returns the logits behind the last token."""
    row = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return np.ctypeslib.as_array(row, (vocabulary,)).astype(np.float64)


def every_token(path, texts, threads):
    """Prints the means over the logits behind every token of the prompts."""
    metadata, tensors = make_golden.read_gguf(path)
    model = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, verbose=False, **threads)
    rows, leads = [], []
    for tokens in texts:
        exact_rows = make_golden.forward(metadata, tensors, tokens, range(len(tokens))).astype(np.float64)
        model.reset()
        model.eval(tokens)
        for ours, exact in zip(model.scores[: len(tokens)].astype(np.float64), exact_rows, strict=True):
            rows.append(distance(ours, exact))
            if ours.argmax() != exact.argmax():
                second, first = np.sort(exact)[-2:]
                leads.append(first - second)
    rms, kl = np.mean(rows, axis=0)
    print(f"{len(rows)} tokens: RMS {rms:.3f}, KL {kl:.4f}; {len(leads)} lose leads of up to {max(leads, default=0):.3f}")


def report(rows):
    for place, (rms, kl) in rows:
        print(f"{place:12} RMS {rms:.3f}, KL {kl:.4f}")
    rms, kl = np.mean([row for _, row in rows], axis=0)
    print(f"{'mean':12} RMS {rms:.3f}, KL {kl:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--golden", type=pathlib.Path, default=pathlib.Path("worker/tests/golden"))
    parser.add_argument("--long", type=int, default=make_golden.LONG[-1])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    threads = dict(n_threads=options.threads, n_threads_batch=options.threads)
    model = llama_cpp.Llama(str(options.model), n_ctx=8192, n_batch=512, verbose=False, **threads)
    texts = [prompt["tokens"] for prompt in json.loads((options.golden / "prompts.json").read_text())]

    def golden(name):
        return np.fromfile(options.golden / name, np.float16).astype(np.float64).reshape(-1, model.n_vocab())

    rows = []
    for tokens, exact in zip(texts, golden("logits.f16"), strict=True):
        model.reset()
        model.eval(tokens)
        rows.append((f"{len(tokens)} tokens", distance(last_logits(model, model.n_vocab()), exact)))
    report(rows)
    every_token(options.model, texts, threads)
    rows, start = [], 0
    tokens = make_golden.make_long(texts)
    model.reset()
    for end, exact in zip(make_golden.LONG, golden("long_logits.f16"), strict=True):
        if end > options.long:
            break
        model.eval(tokens[start:end])
        rows.append((f"{end} tokens", distance(last_logits(model, model.n_vocab()), exact)))
        start = end
    if rows:
        report(rows)


if __name__ == "__main__":
    main()
