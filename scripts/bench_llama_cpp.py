#!/usr/bin/env python3
"""Measures this engine and llama.cpp side by side, and prints how many times faster ours is.

    python3 -m venv venv && PATH=$PWD/venv/bin:$PATH CMAKE_ARGS="-DGGML_NATIVE=ON" \\
        venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 cmake ninja
    cargo build --release -p stator-worker --example decode_speed
    venv/bin/python scripts/bench_llama_cpp.py MODEL.gguf [--theirs FILE | --requantize [both]]

Where the processor has AMX, GCC 12 makes a build that ends with a segmentation fault, and clang one that uses
no AMX (CC=clang CXX=clang++ before the command): docs/engine.md says what to make of that.

The shapes are those of `worker::bench`: a prefill of 512 tokens with the logits after the last,
and decode steps of 1, 8 and 16 sequences from a context of 128 on, logits for each. Both engines
run in processes of their own, one after the other, in every round; a figure is the best of its
rounds' quartiles, so that what else the machine does in between hits both alike.

--theirs      the file that llama.cpp runs; without it, the same as ours
--requantize  let llama.cpp, or both, run a Q4_0 file that llama.cpp makes of the model: the
              fastest format of both engines
--threads     numbers of threads to measure with (default: 1 2)
--rounds      how often each is measured (default: 3)
--ours        the program that measures our engine
--repeats     decode steps of llama.cpp that are timed (default: 64)

The package needed is llama-cpp-python.
"""

import argparse
import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile
import time

PROMPT, CONTEXT, BATCHES = 512, 128, (1, 8, 16)


def requantize(source, target):
    """Writes a Q4_0 file, which llama.cpp repacks for its fastest kernels."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = 2
    parameters.allow_requantize = True
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if code != 0:
        sys.exit(f"llama.cpp could not make a Q4_0 file: code {code}")


def rates(tokens, times):
    """Returns tokens per second at the median, at the fastest quarter, and at best."""
    times = sorted(times)
    return [tokens / times[len(times) // 2], tokens / times[len(times) // 4], tokens / times[0]]


class Llama:
    """One model in llama.cpp, by its low-level interface."""

    def __init__(self, path, threads):
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        callback = llama_cpp.llama_log_callback(lambda *_: None)
        self.callback = callback
        llama_cpp.llama_log_set(callback, None)
        model = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        context = llama_cpp.llama_context_default_params()
        # Each sequence has an even part of the context.
        context.n_ctx = max(BATCHES) * (PROMPT + 128)
        context.n_batch = 2048
        context.n_ubatch = 512
        context.n_seq_max = max(BATCHES)
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.model or not self.context:
            sys.exit(f"llama.cpp could not load {path}")
        self.batch = llama_cpp.llama_batch_init(2048, 0, max(BATCHES))

    def decode(self, entries):
        """Runs one pass over (token, position, sequence, wants logits); returns its seconds."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wants) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants
        started = time.perf_counter()
        code = self.api.llama_decode(self.context, batch)
        self.api.llama_synchronize(self.context)
        if code != 0:
            sys.exit(f"llama_decode: code {code}")
        return time.perf_counter() - started

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)


def measure_theirs(path, threads, repeats):
    """Measures llama.cpp in this process."""
    llama = Llama(path, threads)
    vocabulary = llama.api.llama_vocab_n_tokens(llama.api.llama_model_get_vocab(llama.model))
    prompt = [(i * 37 + 20) % vocabulary for i in range(PROMPT)]
    times = []
    for _ in range(4):
        llama.clear()
        times.append(llama.decode([(t, i, 0, i == PROMPT - 1) for i, t in enumerate(prompt)]))
    figures = {"prefill": rates(PROMPT, times)}
    for count in BATCHES:
        llama.clear()
        for sequence in range(count):
            llama.decode([(t, i, sequence, 0) for i, t in enumerate(prompt[:CONTEXT])])
        times = [
            llama.decode([(5, CONTEXT + step, sequence, 1) for sequence in range(count)])
            for step in range(repeats)
        ]
        figures[f"decode {count}"] = rates(count, times)
    return figures


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{command[0]}: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def best(rounds, name):
    """Returns the best of the rounds' quartiles, and the best step."""
    return max(r[name][1] for r in rounds), max(r[name][2] for r in rounds)


def compare(options, theirs):
    me = [sys.executable, __file__]
    print(f"ours: {options.model.name}; llama.cpp: {theirs.name}; tokens/s (best step)")
    for threads in options.threads:
        our_rounds, their_rounds = [], []
        for _ in range(options.rounds):
            our_rounds.append(run([str(options.ours), str(options.model), str(threads), "json"]))
            child = ["--child", str(threads), "--repeats", str(options.repeats)]
            their_rounds.append(run([*me, str(theirs), *child]))
        for name in our_rounds[0]:
            if name not in their_rounds[0]:
                continue
            (ours, our_best), (other, other_best) = best(our_rounds, name), best(their_rounds, name)
            print(
                f"{threads} threads  {name:10} {ours:7.0f} ({our_best:.0f})   "
                f"{other:7.0f} ({other_best:.0f})   {ours / other:.2f} times"
            )
        bandwidth = max(r["bandwidth"] for r in our_rounds)
        share = best(our_rounds, "decode 1")[0] * our_rounds[0]["bytes"] / bandwidth
        print(f"{threads} threads  reads {bandwidth / 1e9:.1f} GB/s, decode 1 {share:.0%} of it")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--theirs", type=pathlib.Path)
    parser.add_argument("--requantize", nargs="?", const="theirs", choices=["theirs", "both"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=64)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    default = pathlib.Path(__file__).parent.parent / "target/release/examples/decode_speed"
    parser.add_argument("--ours", type=pathlib.Path, default=default)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_theirs(options.model, options.child, options.repeats)))
        return
    with tempfile.TemporaryDirectory() as folder:
        theirs = options.theirs or options.model
        if options.requantize:
            theirs = pathlib.Path(folder) / f"{options.model.stem}.Q4_0.gguf"
            requantize(options.model, theirs)
        if options.requantize == "both":
            options.model = theirs
        compare(options, theirs)


if __name__ == "__main__":
    main()
