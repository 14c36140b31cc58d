"""One request for text, through every door: the OpenAI API, REST's generate, and gRPC."""

import collections
import json
import random
import urllib.request

import numpy as np

from patience import PATIENCE_SECONDS
from wire import Stream, outputs_of, request, strings, tensor

MODEL = "smollm"
CHOICES = {"n": "num_return_sequences", "seed": "random_seed", "stop": "stop_words"}
DATATYPES = {
    **dict.fromkeys(["max_tokens", "max_completion_tokens", "min_tokens", "top_k", "n", "logprobs",
                     "prompt_logprobs", "num_return_sequences"], "INT32"),
    **dict.fromkeys(["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                     "frequency_penalty"], "FP32"),
    **dict.fromkeys(["seed", "random_seed"], "UINT64"),
    **dict.fromkeys(["stop_token_ids", "input_ids"], "INT32"),
    **dict.fromkeys(["ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "echo",
                     "parallel_tool_calls", "return_logprobs", "return_token_ids", "stream",
                     "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens", "add_generation_prompt",
                     "exclude_input_in_output", "continue_final_message"], "BOOL"),
}
NUMPY = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64, "BOOL": np.bool_}
OUTPUTS = ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens", "logprobs",
           "token_ids", "tool_calls", "reasoning_content", "prompt_logprobs"]

Told = collections.namedtuple("Told", "text reasoning finish calls tokens logprobs")
Answer = collections.namedtuple("Answer", "prompt_tokens tokens choices")

QUESTIONS = ["What is the capital of France?", "Say yes.", "Count to five.", "Name a colour.",
             "Who wrote Faust?", "Żółw to po polsku? \U0001f422", "2 + 2 =", "la la la"]
PROMPTS = ["The capital of France is", "1, 2, 3, 4,", "Roses are red,", "la la la la",
           "def add(a, b):\n    return", "Smile \U0001f642\U0001f642", "Żółw ma"]
SYSTEMS = ["You are terse.", "Answer in French."]
STOPS = [".", "\n", [" 7", "!"], ["zzz"], " a", [",", "e"]]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city",
    "parameters": {"type": "object", "required": ["city"], "additionalProperties": False,
                   "properties": {"city": {"type": "string", "maxLength": 8},
                                  "unit": {"enum": ["C", "F"]}}}}}
TIME = {"type": "function", "function": {
    "name": "get_time", "parameters": {"type": "object", "required": ["zone"],
                                       "additionalProperties": False,
                                       "properties": {"zone": {"enum": ["UTC", "CET"]}}}}}
PERSON = {"type": "object", "required": ["age", "name"], "additionalProperties": False,
          "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99},
                         "name": {"type": "string", "maxLength": 6}}}
FORMATS = [{"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
           {"type": "json_object"}, {"type": "text"}, {"type": "regex", "pattern": "[a-c]{2,5}!"}]
GUIDES = [{"guided_json": PERSON}, {"guided_regex": "(red|green|blue)ish"},
          {"guided_choice": ["yes", "no", "maybe"]},
          {"guided_grammar": 'start: "a"+ "b"'}]


def generated(seed):
    """Makes a request out of a seed: a prompt's fields, and settings in the OpenAI API's words."""
    rng = random.Random(seed)
    some = lambda chance: rng.random() < chance
    settings = {"max_tokens": rng.randint(2, 6), "temperature": rng.choice([0, 0, 0.7, 1]),
                "seed": rng.randint(0, 2**63 - 1), "return_token_ids": True}
    if some(0.3):
        settings["top_p"] = rng.choice([0.2, 0.9, 1])
    if some(0.3):
        settings["top_k"] = rng.choice([-1, 1, 5, 40])
    if some(0.15):
        settings["min_p"] = rng.choice([0.05, 0.5])
    if some(0.3):
        settings["stop"] = rng.choice(STOPS)
        settings["max_tokens"] = 10
        if some(0.4):
            settings["include_stop_str_in_output"] = True
    if some(0.15):
        settings["n"] = 2
    for penalty in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        if some(0.15):
            settings[penalty] = rng.choice([0.5, 1.5])
    if some(0.2):
        settings["logit_bias"] = {str(rng.randint(20, 49000)): rng.choice([-100, 3.5, 20])
                                  for _ in range(rng.randint(1, 3))}
    if some(0.15):
        settings["ignore_eos"] = True
    if some(0.15):
        settings["skip_special_tokens"] = False
    if some(0.1):
        settings["min_tokens"] = 2
    if some(0.6):
        return _chat(rng, some, settings)
    return _completion(rng, some, settings)


def _chat(rng, some, settings):
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if some(0.4) else []
    for turn in range(rng.randint(1, 3)):
        if turn:
            messages.append({"role": "assistant", "content": rng.choice(["Yes.", "Four.", "I see"])})
        question = rng.choice(QUESTIONS)
        parts = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts if some(0.2) else question})
    settings["max_completion_tokens" if some(0.5) else "max_tokens"] = settings.pop("max_tokens")
    kind = rng.choice(["plain", "plain", "format", "guided", "auto", "copied", "required", "named"])
    if kind == "format":
        settings["response_format"] = rng.choice(FORMATS)
    elif kind == "guided":
        settings.update(rng.choice(GUIDES))
    elif kind != "plain":
        settings["tools"] = [WEATHER, TIME] if some(0.7) else [WEATHER]
        if some(0.3):
            settings["parallel_tool_calls"] = False
        settings["tool_choice"] = {
            "required": "required", "auto": "auto", "copied": "auto",
            "named": {"type": "function", "function": {"name": "get_weather"}}}[kind]
        if kind in ("auto", "copied") and some(0.5):
            del settings["tool_choice"]
    if kind == "copied":
        # What was called again and again is called once more.
        messages = _calls(rng)
        settings = {key: value for key, value in settings.items()
                    if key in ("tools", "seed", "return_token_ids", "tool_choice", "n", "logit_bias")}
        settings.update(temperature=0, tools=[TIME])
    if kind in ("required", "named", "copied"):
        for name in ("stop", "max_completion_tokens"):
            settings.pop(name, None)
        settings["max_tokens"] = 32
    if some(0.4):
        settings.update(logprobs=True, top_logprobs=rng.choice([0, 1, 4]))
    return {"messages": messages}, settings


def _calls(rng):
    """Makes a chat in which the same tool was called again and again."""
    messages, zones = [], [rng.choice(["UTC", "CET"]) for _ in range(4)]
    for index, zone in enumerate(zones):
        messages.append({"role": "user", "content": f"{zone}?"})
        function = {"name": "get_time", "arguments": json.dumps({"zone": zone})}
        called = {"id": f"c{index}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [called]})
    return messages[:-1]


def _completion(rng, some, settings):
    if some(0.2):
        prompt = {"input_ids": [rng.randint(20, 40000) for _ in range(rng.randint(1, 6))]}
    else:
        prompt = {"text_input": rng.sample(PROMPTS, 2 if some(0.2) else 1)}
    if some(0.3):
        settings["echo"] = True
    if some(0.25):
        settings.update(rng.choice(GUIDES))
    if some(0.4):
        settings["logprobs"] = rng.choice([0, 1, 4])
    return prompt, settings


def posted(server, path, body):
    """Makes a call over HTTP, which may take long where many tests share few cores."""
    url = f"http://{server.http}{path}"
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as reply:
        return json.load(reply)


def by_openai(server, prompt, settings):
    """Asks through the OpenAI API."""
    body = {"model": MODEL, **settings}
    if "messages" in prompt:
        found = posted(server, "/v1/chat/completions", {**body, **prompt})
    else:
        texts = prompt.get("text_input") or [""]
        body["prompt"] = prompt.get("input_ids") or (texts if len(texts) > 1 else texts[0])
        found = posted(server, "/v1/completions", body)
    choices = []
    for choice in found["choices"]:
        message = choice.get("message") or {"content": choice["text"]}
        calls = [(one["function"]["name"], one["function"]["arguments"])
                 for one in message.get("tool_calls", [])]
        choices.append(Told(message["content"] or "", message.get("reasoning_content", ""),
                            choice["finish_reason"], calls, choice.get("token_ids", []),
                            _openai_logprobs(choice["logprobs"])))
    usage = found["usage"]
    return Answer(usage["prompt_tokens"], usage["completion_tokens"], choices)


def _openai_logprobs(logprobs):
    """Brings both of the API's forms to one: for each token its text, its value and the best."""
    if not logprobs:
        return []
    if "tokens" in logprobs:
        tokens = [_plain(token) for token in logprobs["tokens"]]
        tops = [best and {_plain(token): value for token, value in best.items()}
                for best in logprobs["top_logprobs"]]
        return list(zip(tokens, logprobs["token_logprobs"], tops))
    best = lambda one: {top["token"]: top["logprob"] for top in one["top_logprobs"]}
    return [(one["token"], one["logprob"], best(one)) for one in logprobs["content"]]


def _plain(token):
    """Returns a token as the tensors spell it: what is no character is U+FFFD, not its bytes."""
    if not token.startswith("bytes:"):
        return token
    return bytes.fromhex(token[6:].replace("\\x", "")).decode(errors="replace")


def as_tensors(prompt, settings):
    """Returns the settings in the tensors' words."""
    found = dict(settings)
    is_chat = "messages" in prompt
    top = found.pop("top_logprobs", 0) if is_chat else found.get("logprobs")
    asked = found.pop("logprobs", None)
    if asked is not None and asked is not False:
        found.update(return_logprobs=True, logprobs=top or 0)
        if found.get("echo"):
            found["prompt_logprobs"] = top
    if not is_chat and not found.get("echo"):
        found["exclude_input_in_output"] = True
    wanted = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    return {**found, **dict.fromkeys(wanted, True)}


def made(rng, prompt, settings, stream):
    """Makes a gRPC request whose settings come as tensors, JSON or parameters, by chance."""
    inputs, raw, parameters, sampling = [], [], {}, {}

    def add(name, datatype, values, is_text=False):
        shape = [len(values)] if rng.random() < 0.5 or datatype == "BOOL" else [len(values), 1]
        if name in ("stop", "stop_words", "stop_token_ids", "input_ids", "guided_choice"):
            shape = [len(values)] if rng.random() < 0.5 else [1, len(values)]
        inputs.append(tensor(name, datatype, shape))
        raw.append(strings(*values) if is_text else NUMPY[datatype](values).tobytes())

    for name, value in settings.items():
        form = rng.choice(["tensor", "json", "parameter"])
        if name in CHOICES and rng.random() < 0.3:
            name = CHOICES[name]
        datatype = DATATYPES.get(name, "BYTES")
        is_list = isinstance(value, list) and name != "tools"
        if form == "json" and not name.startswith("return_"):
            sampling[name] = value
        elif form == "parameter" and not is_list:
            is_word = isinstance(value, str) or datatype != "BYTES"
            parameters[name] = value if is_word else json.dumps(value)
        elif datatype != "BYTES":
            add(name, datatype, value if is_list else [value])
        else:
            values = value if is_list else [value if isinstance(value, str) else json.dumps(value)]
            add(name, "BYTES", values, is_text=True)
    for name, value in prompt.items():
        if name == "input_ids":
            add(name, "INT32", value)
        else:
            add(name, "BYTES", [json.dumps(value)] if name == "messages" else value, is_text=True)
    if sampling:
        add("sampling_parameters", "BYTES", [json.dumps(sampling)], is_text=True)
    if stream:
        add("stream", "BOOL", [True])
    names = []
    if rng.random() < 0.3:
        names = [name for name in OUTPUTS if name not in ("logprobs", "prompt_logprobs")]
        names += ["logprobs"] * ("return_logprobs" in settings)
        names += ["prompt_logprobs"] * ("prompt_logprobs" in settings)
    return request(MODEL, inputs, raw, names, parameters)


def by_generate(server, prompt, settings):
    """Asks through REST's generate."""
    text = lambda name, value: json.dumps(value) if isinstance(value, dict) else value
    body = {name: text(name, value) for name, value in {**prompt, **settings}.items()}
    reply = posted(server, f"/v2/models/{MODEL}/generate", body)
    found = {name: value if isinstance(value, list) else [value]
             for name, value in reply.items() if not name.startswith("model_")}
    return read([found], prompt, settings)


def by_unary(stub, rng, prompt, settings):
    """Asks through ModelInfer."""
    answer = stub.ModelInfer(made(rng, prompt, settings, stream=False))
    return read([outputs_of(answer)], prompt, settings)


def by_stream(stub, rng, prompt, settings):
    """Asks through ModelStreamInfer, a response a token."""
    channel = Stream(stub)
    channel.send(made(rng, prompt, settings, stream=True))
    channel.close()
    messages = list(channel)
    assert not any(message.error_message for message in messages), messages[-1].error_message
    return read([outputs_of(message.infer_response) for message in messages], prompt, settings)


def read(responses, prompt, settings):
    """Joins responses."""
    decode = lambda value: value.decode() if isinstance(value, bytes) else value
    column = lambda name, row: [decode(one[name][row]) for one in responses if name in one]
    rows = len(responses[-1]["text_output"])
    # A stream tells the tokens of the message, and of the prompt every time.
    per_prompt = rows // (len(prompt.get("text_input", [0])) or 1)
    told = []
    for row in range(rows):
        lists = lambda name: [one for text in column(name, row) for one in json.loads(text)]
        calls = collections.OrderedDict()
        for piece in lists("tool_calls"):
            known = calls.setdefault(piece["index"], ["", ""])
            known[0] += piece["function"].get("name", "")
            known[1] += piece["function"]["arguments"]
        top = settings.get("logprobs", 0)
        tokens = lists("token_ids")
        scores = [_tensor_logprobs(one, None, top) for one in lists("prompt_logprobs")]
        drawn = lists("logprobs")
        scores += [_tensor_logprobs(one, token, top) for one, token in zip(drawn, tokens)]
        # Tensors score the token that ended the text too, as vLLM's backend does.
        assert not drawn or len(drawn) == sum(column("num_output_tokens", row))
        assert len(drawn) <= len(tokens) or column("finish_reason", row)[-1] != "length"
        told.append(Told("".join(column("text_output", row)),
                         "".join(column("reasoning_content", row)),
                         # Each response after the end tells it again.
                         column("finish_reason", row)[-1],
                         [tuple(one) for one in calls.values()], tokens, scores))
    prompt_tokens = sum(column("num_input_tokens", row)[-1] for row in range(0, rows, per_prompt))
    drawn = sum(sum(column("num_output_tokens", row)) for row in range(rows))
    return Answer(int(prompt_tokens), int(drawn), told)


def _tensor_logprobs(step, token, top):
    """Brings a token's entry to the OpenAI API's form; a prompt's tokens are not named in it."""
    if step is None:
        return (None, None, None)
    best = sorted((one for one in step.values() if one["rank"] <= top), key=lambda one: one["rank"])
    best = {one["decoded_token"]: one["logprob"] for one in best}
    if token is None:
        # One more than the alternatives: the token itself.
        own = max(step.values(), key=lambda one: one["rank"]) if len(step) > top else {}
        return (own.get("decoded_token"), own.get("logprob"), best)
    own = step[str(token)]
    return (own["decoded_token"], own["logprob"], best)


def same(answer, other):
    """Asserts that two answers are the same."""
    assert answer[:2] == other[:2]
    for one, two in zip(answer.choices, other.choices, strict=True):
        assert one[:5] == two[:5]
        assert len(one.logprobs) == len(two.logprobs)
        for (text, value, best), (text_too, value_too, best_too) in zip(one.logprobs, two.logprobs):
            # Of a prompt's token the tensors tell the alternatives, among which it may stand.
            assert text_too in (None, text) and value_too in (None, value)
            assert (best or None) == (best_too or None)
