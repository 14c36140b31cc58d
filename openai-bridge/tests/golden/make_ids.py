#!/usr/bin/env python3
"""Makes the golden token ids that the bridge's tokenizer is tested against.

    python3 -m venv venv && venv/bin/pip install tokenizers
    venv/bin/python make_ids.py MODEL.gguf OUT_DIR

MODEL.gguf is SmolLM2-135M-Instruct Q4_1, the default model. In OUT_DIR it writes

    smollm2_ids.json  a list of {"text": ..., "ids": [...]}, one text a line

The vocabulary, the merges and the control tokens come from the model's metadata; Hugging Face's
tokenizers package, set up as SmolLM2's own tokenizer is, turns the texts to ids. No token is
added before or after a text; a control token spelt out inside a text becomes its one id.

Some of the 256 bytes have no token in this vocabulary. They occur in rare control characters and
in no common script; the reference leaves them out, and one text below pins that.

The package needed is tokenizers.
"""

import json
import pathlib
import struct
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# Characters that an editor may hide, reorder or compose are written as escapes.
TEXTS = [
    # Nearly nothing.
    "",
    " ",
    "\n",
    "a",
    # Plain prose and punctuation.
    "The quick brown fox jumps over the lazy dog.",
    "Hello, world! How are you today? Fine -- thanks; and you (both)?",
    ' leading space, "quoted" words, trailing space ',
    "Wait...what?! #hashtag @user user.name+tag@example.org https://example.org/a?b=c&d=%20e",
    # Digits: each stands alone and takes no space with it.
    "1234567",
    "3.14",
    "In 2024, 3 of 10 paid $1,299.99 (or 50%) at 09:30.",
    "x1 y22z333 4th  5   6\n7\t8",
    "x\u00b2 + \u00bd = \u2167, \u2460 \u0663\u0664\u0665 \u0967\u0968 \u4e00\u4e8c\u4e09",
    # Contractions: only the lower-case ones split off.
    "I'll don't WE'RE they've I'm she'd it's 'tis o'clock",
    "I\u2019ll don\u2019t 'll 's'd rock'n'roll '' 'S 'T",
    # Spaces, tabs and line ends.
    "a  b   c    d                    e",
    "  two before, three after   ",
    "one\n\ntwo\n\n\n\nthree\r\nfour\rfive\n",
    " \n \n\t\n  x",
    "tab\tseparated\t\tvalues\t",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, "
    "line\u2028separator, next\u0085line",
    # Code.
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return None\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![0; 16];\n\tprintln!(\"{:?}\", &v[1..=3]);\n}\n",
    '{"id": 17, "tags": ["a", "b"], "nested": {"ok": true, "none": null}}',
    "SELECT name, COUNT(*) FROM t WHERE a <> 'it''s' GROUP BY 1; -- done\n/* C */ a->b != c::d",
    "<p class=\"x\">caf&eacute; &amp; bar</p>\n```rust\nlet r#type = 0xFF_u32;\n```\n",
    "snake_case camelCase PascalCase SCREAMING_SNAKE kebab-case __init__ $var %d \\n \\\\",
    # Other languages.
    "El ni\u00f1o comi\u00f3 \u00bfpor qu\u00e9? \u00a1Qu\u00e9 sorpresa! \u00c5ngstr\u00f6m, "
    "Stra\u00dfe, \u0141\u00f3d\u017a, \u0130stanbul",
    "Быстрая лиса прыгает. Η γρήγορη αλεπού.",
    "我喜欢学习新的语言。今日はいい天気ですね。안녕하세요 세계",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c "
    "\u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f \u05e9\u05dc\u05d5\u05dd",
    "नमस्ते दुनिया, आप कैसे हैं? สวัสดีชาวโลก",
    # Composed and decomposed letters keep apart: nothing is normalised.
    "\u00e9 e\u0301 \u00f1 n\u0303 \u1e69 s\u0323\u0307 Z\u0351\u036b\u0343 \ufb01 "
    "\uff21\uff22\uff23",
    # Emoji: plain, with a skin tone, joined by ZWJ, a flag, a keycap; then symbols.
    "\U0001f600 \U0001f44d\U0001f3fd "
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1eb\U0001f1f7 1\ufe0f\u20e3 "
    "\u2764\ufe0f",
    "\u221e \u2260 \u2264 \u2192 \u2203x\u2208\u211d \u20ac5 \u2122 \u00a9 \u2014 \u2026 "
    "\u201cquoted\u201d \U0001d538\U00020000",
    # Control characters; U+0000 has a token, U+0004 and U+0006 have none.
    "a\x00b\x07c\x1bd\x7fe",
    "a\x04b \x06 c",
    "zero\u200bwidth \ufeffmark \ufffd",
    # Long words.
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
    "a" * 300,
    "=" * 70 + "\n" + "-" * 33 + "\n" + "!?" * 20,
    "qzxjkvbwpfmhgdrtnslcyuoiea" * 4,
    # Control tokens inside a text.
    "<|im_start|>user\nhi<|im_end|>",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "before <|endoftext|> after<|endoftext|><|endoftext|>  <repo_name>x<file_sep> y",
    "<|im_start|> <|im_sta rt|> <|IM_END|> <|im_end| > <<|im_end|>> im_end",
    "<filename>a.py<gh_stars>10<issue_start><jupyter_code>1<empty_output>\n<reponame>",
    # All at once.
    "Caf\u00e9 #42: 3\u00d74=12 \u2705\n\n\t- it's \u201cna\u00efve\u201d, isn't it? "
    "\u4ef7\u683c\uff1a\uffe51,000\u5143 <b>OK</b>   \n",
]


def read_metadata(path: pathlib.Path) -> dict:
    """Returns the metadata of a GGUF file."""
    scalars = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
    with path.open("rb") as file:

        def scalar(code: str):
            (value,) = struct.unpack("<" + code, file.read(struct.calcsize(code)))
            return value

        def string() -> str:
            return file.read(scalar("Q")).decode()

        def value(kind: int):
            if kind == 8:
                return string()
            if kind == 9:
                element, count = scalar("I"), scalar("Q")
                return [value(element) for _ in range(count)]
            return scalar(scalars[kind])

        if file.read(4) != b"GGUF" or scalar("I") != 3:
            sys.exit(f"{path} is no GGUF file of version 3")
        _tensor_count, metadata_count = scalar("Q"), scalar("Q")
        metadata = {}
        for _ in range(metadata_count):
            key = string()
            metadata[key] = value(scalar("I"))
    return metadata


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


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: make_ids.py MODEL.gguf OUT_DIR")
    out = pathlib.Path(sys.argv[2])
    tokenizer = make_tokenizer(read_metadata(pathlib.Path(sys.argv[1])))
    lines = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        lines.append(json.dumps({"text": text, "ids": ids}))
        if tokenizer.decode(ids, skip_special_tokens=False) != text:
            print(f"decodes to another text: {text!r}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "smollm2_ids.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(lines)} texts")


if __name__ == "__main__":
    main()
