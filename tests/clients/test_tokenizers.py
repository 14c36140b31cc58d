"""Our tokenizers against the packages that models are made with: tokenizers and sentencepiece.

Both train tiny models here, offline; ours must give their ids and texts.
"""

import io
import json
import os
import pathlib
import random
import subprocess

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from patience import PATIENCE_SECONDS

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["", " ", "a", " a", "a ", "  a  b", "don't", "DON'T", "\n", "a\n\nb", " \n ", "x\t\ty", "12345 678",
         "naïve café", "e\u0301", "ſ's", "世界你好", "こんにちは。", "안녕하세요", "Привет, мир!", "مرحبا", "नमस्ते",
         "👍🏽 👩‍👩‍👧‍👦", "\u00a0\u3000", "\u2581", "a\u2581b", "\u0000\u0004\u007f", "<0x41>", "<s>", "</s>x", "a<s> b",
         "f(x) = {x: [1, 2]}  # c", "https://a.b/c?d=e", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "HTTPServer camelCase", "½²Ⅷ٣", "...!!! --- $100", " " * 100, "\ufffd\U0010ffff"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus():
    """Returns lines of English, code and other scripts to train on."""
    texts = [path.read_text() for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("tests/*.rs"))]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return lines + [text for text in SMALL if "\0" not in text] * 3


def texts():
    """Returns texts to compare: small hard ones, lines that were trained on, and mixtures."""
    rng = random.Random(7)
    lines = corpus()
    mixed = ["".join(rng.choices(SMALL + lines, k=rng.randint(2, 12))) for _ in range(200)]
    noise = ["".join(chr(rng.choice([rng.randint(0, 0x24F), rng.randint(0, 0xD7FF)])) for _ in range(20))
             for _ in range(100)]
    return SMALL + lines[:100] + mixed + noise


@pytest.fixture(scope="module")
def tokenize():
    """Returns a function from a vocabulary and texts to our ids and texts."""
    # With all others, as they are built for the other tests: then its libraries have the same features.
    build = ["cargo", "build", "--quiet", "--locked", "--workspace", "--bins", "--examples"]
    subprocess.run(build, cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

    def run(vocabulary, texts):
        lines = "\n".join([json.dumps(vocabulary), *(json.dumps(text) for text in texts)]) + "\n"
        done = subprocess.run([target / "debug/examples/tokenize"], input=lines, capture_output=True, text=True,
                              encoding="utf-8", timeout=PATIENCE_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def byte_level(*splits, **bpe):
    """Returns a trained byte-level tokenizer that cuts as the expressions say."""
    tokenizer = tokenizers.Tokenizer(models.BPE(**bpe))
    steps = [pre_tokenizers.Split(tokenizers.Regex(split), "isolated") for split in splits]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", normalized=False)])
    return tokenizer


def as_gguf(tokenizer, name):
    """Returns the tables that a GGUF file has for a byte-level tokenizer."""
    content = json.loads(tokenizer.to_str())
    ids = tokenizer.get_vocab(with_added_tokens=True)
    special = {token["content"] for token in content["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    return {"model": "gpt2", "pre_tokenizer": name, "tokens": tokens,
            "kinds": [3 if token in special else 1 for token in tokens],
            "merges": [" ".join(merge) for merge in content["model"]["merges"]]}


def compare(tokenizer, answers, is_fast=True):
    for text, answer in zip(texts(), answers, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert answer["ids"] == ids, repr(text)
        assert answer["text"] == tokenizer.decode(ids), repr(text)
        assert answer["is_fast"] == is_fast


@pytest.mark.parametrize("name,splits,bpe", [
    ("gpt-2", [], {}),
    ("llama-bpe", [LLAMA3], {"ignore_merges": True}),
    ("deepseek-r1-qwen", [QWEN2], {}),
    ("tekken", [TEKKEN], {"ignore_merges": True}),
])
def test_byte_level_bpe_is_the_package_s(tokenize, name, splits, bpe):
    tokenizer = byte_level(*splits, **bpe)
    compare(tokenizer, tokenize(json.loads(tokenizer.to_str()), texts()))
    compare(tokenizer, tokenize(as_gguf(tokenizer, name), texts()))


def test_qwen_composes_letters_first(tokenize):
    tokenizer = byte_level(QWEN2)
    tokenizer.normalizer = normalizers.NFC()
    compare(tokenizer, tokenize(json.loads(tokenizer.to_str()), texts()))
    compare(tokenizer, tokenize(as_gguf(tokenizer, "qwen2"), texts()))


def test_what_we_do_not_know_is_left_to_the_library(tokenize):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    compare(tokenizer, tokenize(json.loads(tokenizer.to_str()), texts()), is_fast=False)


@pytest.fixture(scope="module", params=[True, False], ids=["space in front", "no space in front"])
def pieces(request):
    """Returns a trained SentencePiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=1500, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=request.param, split_digits=True, allow_whitespace_only_pieces=True,
        minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), request.param


def test_sentencepiece_is_the_package_s(tokenize, pieces):
    model, adds_space = pieces
    ids = range(model.get_piece_size())

    def kind(token):
        checks = [(model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6)]
        return next((number for check, number in checks if check(token)), 1)

    vocabulary = {"model": "llama", "tokens": [model.id_to_piece(token) for token in ids],
                  "scores": [model.get_score(token) for token in ids], "kinds": [kind(token) for token in ids],
                  "add_space_prefix": adds_space}
    # The package does not look for control tokens in texts; a server does.
    wanted = [text for text in texts() if not any(token in text for token in ["<s>", "</s>", "<unk>"])]
    for text, answer in zip(wanted, tokenize(vocabulary, wanted), strict=True):
        assert answer["ids"] == model.encode(text), repr(text)
        if "\u2581" not in text:
            assert answer["text"] == text, repr(text)


def test_character_bpe_of_tokenizer_json_is_the_package_s(tokenize):
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False, limit_alphabet=80)
    tokenizer.train_from_iterator((word for line in corpus() for word in line.split()), trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if "<0x" not in token["content"]]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    compare(tokenizer, tokenize(content, texts()))
