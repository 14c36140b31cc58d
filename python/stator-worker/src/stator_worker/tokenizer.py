"""What a frontend needs of a tokenizer, out of a folder as Hugging Face has them.

`tokenizer.json` says all of the text; the files beside it name the tokens that begin and end one,
and hold the chat template. The frontend fetches it as one artifact, `vocabulary`.
"""

import dataclasses
import json
import pathlib
import re

MAX_TOKENS = 1 << 24
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# The artifact of a tokenizer of which nothing is known.
EMPTY = {"model": "", "pre_tokenizer": "", "tokens": [], "kinds": "", "merges": [],
         "score_bits": [], "add_space_prefix": False, "json": None, "bos": None, "eos": None,
         "add_bos": False, "chat_template": None}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer's tables as the artifact has them."""

    content: bytes
    eos_tokens: tuple[int, ...]
    context_length: int
    has_template: bool


def read(folder):
    """Reads the tokenizer of a model that makes texts."""
    folder = pathlib.Path(folder)
    text = _required(folder)
    file = _parsed(folder / "tokenizer.json", text)
    settings = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    config = _optional(folder / "config.json")
    is_pieces = _is_pieces(file)
    tokens, kinds = _table(file, config.get("vocab_size"), is_pieces)
    ids = {token: id for id, token in enumerate(tokens) if token}
    end = _named(settings, "eos_token", ids)
    eos = _numbers(generation, "eos_token_id") or _numbers(config, "eos_token_id")
    # The tokenizer's end comes first: it is what a chat template calls `eos_token`.
    eos = list(dict.fromkeys(([end] if end is not None else []) + eos))
    templated = _templated_bos(file)
    begins = [templated, _named(settings, "bos_token", ids), *_numbers(config, "bos_token_id")]
    adds_bos = settings.get("add_bos_token")
    template = _chat_template(folder, settings)
    content = _content(
        model="llama" if is_pieces else "gpt2",
        json=text,
        tokens=tokens,
        kinds="".join(kinds),
        bos=next((id for id in begins if id is not None), None),
        eos=eos[0] if eos else None,
        add_bos=templated is not None if adds_bos is None else bool(adds_bos),
        chat_template=template)
    return Tokenizer(content, tuple(eos), _context_length(config, settings), template is not None)


def read_encoder(folder):
    """Reads the tokenizer of a model that makes vectors: `tokenizer.json` is all of it."""
    folder = pathlib.Path(folder)
    content = _content(json=_required(folder))
    settings = _optional(folder / "tokenizer_config.json")
    length = _context_length(_optional(folder / "config.json"), settings)
    return Tokenizer(content, (), length, False)


def _content(**known):
    return json.dumps(EMPTY | known, ensure_ascii=False, separators=(",", ":")).encode()


def _context_length(config, settings):
    longest = config.get("max_position_embeddings") or settings.get("model_max_length") or 0
    # Tokenizers without a limit say so by a very large number.
    return int(longest) if longest < 1 << 31 else 0


def _required(folder):
    """Returns the text of `tokenizer.json`."""
    try:
        return (folder / "tokenizer.json").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        why = "there is no such folder" if not folder.is_dir() else "it has none"
        raise ValueError(f"tokenizer: expected a folder with a `tokenizer.json`, got `{folder}`: "
                         f"{why}; one of the Hugging Face hub has to be fetched first") from None


def _optional(path):
    try:
        return _parsed(path, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _parsed(path, text):
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"tokenizer: `{path}` is no JSON: {error}") from None


def _table(file, rows, is_pieces):
    """Returns the texts of all tokens and a letter for the kind of each; numbers without a token
    are not in use."""
    vocabulary = file["model"]["vocab"]
    if isinstance(vocabulary, dict):
        entries = [(id, token, "n") for token, id in vocabulary.items()]
    else:
        entries = [(id, entry[0], "n") for id, entry in enumerate(vocabulary)]
    for token in file.get("added_tokens") or []:
        entries.append((token["id"], token["content"], "c" if token.get("special") else "d"))
    rows = max([rows or 0, *(id + 1 for id, _, _ in entries)])
    if rows > MAX_TOKENS:
        raise ValueError(f"tokenizer.json: expected at most {MAX_TOKENS} tokens, got {rows}")
    tokens, kinds = [""] * rows, ["u"] * rows
    unknown = file["model"].get("unk_token")
    for id, token, kind in entries:
        if is_pieces and token == unknown:
            kind = "x"
        elif is_pieces and kind == "n" and BYTE.fullmatch(token):
            kind = "b"
        tokens[id], kinds[id] = token, kind
    return tokens, kinds


def _is_pieces(file):
    """Returns whether text is spelled as SentencePiece does, with `▁` for spaces, and not in
    letters for bytes."""
    decoder = file.get("decoder") or {}
    kinds = {step.get("type") for step in [decoder, *(decoder.get("decoders") or [])]}
    return "ByteLevel" not in kinds and not kinds.isdisjoint({"Metaspace", "ByteFallback"})


def _named(settings, key, ids):
    token = settings.get(key)
    if token is None:
        return None
    text = token.get("content") if isinstance(token, dict) else token
    if text not in ids:
        raise ValueError(f"tokenizer_config.json: `{key}`: `{text}` is no token of tokenizer.json")
    return ids[text]


def _numbers(file, key):
    value = file.get(key)
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _templated_bos(file):
    """Returns the token that `tokenizer.json` puts in front of a text."""
    processor = file.get("post_processor") or {}
    for step in [processor, *(processor.get("processors") or [])]:
        if step.get("type") != "TemplateProcessing":
            continue
        first = (step.get("single") or [{}])[0].get("SpecialToken")
        if first:
            return step["special_tokens"][first["id"]]["ids"][0]
    return None


def _chat_template(folder, settings):
    own = folder / "chat_template.jinja"
    if own.exists():
        return own.read_text(encoding="utf-8")
    template = _optional(folder / "chat_template.json").get("chat_template")
    template = template or settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        if "default" not in named:
            raise ValueError("tokenizer_config.json: expected a template called `default`")
        return named["default"]
    return template
