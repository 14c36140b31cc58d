#!/usr/bin/env python3
"""Writes the vectors that sentence-transformers gives for a table of texts, as JSON.

    scripts/golden_embeddings.py MODEL_DIRECTORY >tests/data/minilm.json

The tests compare ours with them. It needs `sentence-transformers` and `torch`, in 32 bits on the
CPU; the file in the repository was made with sentence-transformers 2.7.0, transformers 4.38.2 and
torch 1.13.0, each text alone.
"""

import json
import sys

LONG = ("The library holds forty thousand volumes, most of them older than the town itself. "
        "Its keeper, a man of few words, lends them to whoever brings back what they borrowed. ")

# Short, long, and of many scripts: what tokenizers and pooling disagree about.
TEXTS = [
    "a cat",
    "The cat sat on the mat.",
    "A dog is playing in the park.",
    "How do I reset my password?",
    "I forgot my login credentials, what should I do?",
    "Rust is a systems programming language that guarantees memory safety.",
    "x",
    "  leading and trailing spaces \t\n ",
    "MiXeD CaSe, punctuation!? (and brackets) [here] — with dashes...",
    "E = mc^2, so 3.14159 * 2 != 6.28; if (a != b) { return a->b++; }",
    "Café, naïve, Ångström, coöperate, e\u0301 and é",
    "Привет, мир! Как дела сегодня?",
    "世界你好，今天天气很好。",
    "こんにちは、世界。カタカナもあります。",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👍🏽 emoji 🎉🎉 and 👩‍👩‍👧‍👦 families",
    "Pneumonoultramicroscopicsilicovolcanoconiosis " + "a" * 120,
    "[CLS] spelled out [SEP] and [MASK] in the text",
    "1234567890 1,000,000.00 0x1F 2026-11-21T18:00:00Z",
    "https://example.com/path/to/page?query=value&other=%20#fragment",
    "the " * 100,
    LONG * 3,
    LONG * 6,
    LONG * 7 + "The end",
]

# Longer than the model takes: the library cuts them without a word.
CUT = [LONG * 20]


def main() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(sys.argv[1], device="cpu")
    count = [len(model.tokenizer(text)["input_ids"]) for text in TEXTS + CUT]
    most = model.max_seq_length
    assert max(count[:len(TEXTS)]) <= most < min(count[len(TEXTS):]), count
    cases = []
    for text, tokens in zip(TEXTS + CUT, count):
        vector = model.encode([text], batch_size=1)[0]
        cases.append({"text": text, "tokens": min(tokens, most), "is_cut": tokens > most,
                      "vector": [round(float(value), 6) for value in vector]})
    print("[")
    print(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases))
    print("]")


if __name__ == "__main__":
    main()
