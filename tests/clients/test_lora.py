"""LoRA adapters of the default model: served, listed, loaded and unloaded while others are asked."""

import concurrent.futures
import json

import numpy as np
import openai
import pytest
import requests
import tritonclient.grpc as triton

from conftest import running, sdk_of
from patience import PATIENCE_SECONDS, eventually
from real_models import real_model

LAYERS, HIDDEN, KV, WIDE, RANK = 30, 576, 192, 1536, 4
SHAPES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, KV),
          "mlp.gate_proj": (HIDDEN, WIDE), "mlp.down_proj": (WIDE, HIDDEN)}
PROMPT = "The capital of France is"


def write_adapter(folder, seed, rank=RANK, **changes):
    """Writes an adapter of random numbers in the library PEFT's layout."""
    random = np.random.default_rng(seed)
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for layer in range(LAYERS):
        for name, (columns, rows) in SHAPES.items():
            for side, shape in [("A", (rank, columns)), ("B", (rows, rank))]:
                values = random.normal(0, 0.1, shape).astype("<f4").tobytes()
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight"
                header[key] = {"dtype": "F32", "shape": shape,
                               "data_offsets": [len(data), len(data) + len(values)]}
                data += values
    folder.mkdir(parents=True)
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (folder / "adapter_model.safetensors").write_bytes(content)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
              "target_modules": [name.split(".")[1] for name in SHAPES], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of adapters, and a model repository with one."""
    root = tmp_path_factory.mktemp("adapters")
    made = {name: write_adapter(root / name, seed) for seed, name in enumerate(["a", "b", "c"])}
    made["wide"] = write_adapter(root / "wide", 7, rank=16)
    made["biased"] = write_adapter(root / "biased", 8, bias="all")
    write_adapter(root / "repository" / "shelf" / "1", 9)
    made["repository"] = root / "repository"
    return made


@pytest.fixture(scope="module")
def server(adapters):
    with running(f"smollm={real_model()}", "--builtin", "mock", "--lora-modules", f"a={adapters['a']}",
                 "--max-loras", "3", "--max-lora-rank", "8", "--model-control-mode", "explicit",
                 "--model-repository", str(adapters["repository"])) as server:
        yield server
        assert server.is_running(), "the server died:\n" + "".join(server.log[-50:])


@pytest.fixture(scope="module")
def client(server):
    with sdk_of(server) as client:
        yield client


def post(server, route, **body):
    return requests.post(f"http://{server.http}/v1/{route}", json=body, timeout=PATIENCE_SECONDS)


def say(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0,
                                       logprobs=1)
    return answer.choices[0].text, answer.choices[0].logprobs.token_logprobs


def test_adapters_come_and_go(server, client, adapters):
    base, with_a = say(client, "smollm"), say(client, "a")
    assert base != with_a
    assert post(server, "load_lora_adapter", lora_name="b", lora_path=str(adapters["b"])).text == \
        "Success: LoRA adapter 'b' added successfully."
    with triton.InferenceServerClient(server.address) as kserve:
        kserve.load_model("shelf")
        alone = {name: say(client, name) for name in ["smollm", "a", "b", "shelf"]}
        assert alone["smollm"] == base and alone["a"] == with_a
        assert len({repr(answer) for answer in alone.values()}) == 4
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            asked = [name for name in alone for _ in range(3)]
            for name, answer in zip(asked, pool.map(lambda name: say(client, name), asked)):
                assert answer == alone[name], name
        listed = {model.id: model for model in client.models.list()}
        assert listed["a"].parent == listed["b"].parent == listed["shelf"].parent == "smollm"
        assert not hasattr(listed["smollm"], "parent")
        index = {model.name: model.state for model in kserve.get_model_repository_index().models}
        assert index["b"] == index["shelf"] == "READY"
        assert kserve.get_model_metadata("b").name == "b"
        full = post(server, "load_lora_adapter", lora_name="c", lora_path=str(adapters["c"]))
        assert full.status_code == 400 and "3 adapters are loaded" in full.text
        kserve.unload_model("shelf")
    assert post(server, "unload_lora_adapter", lora_name="b").text == \
        "Success: LoRA adapter 'b' removed successfully."
    with pytest.raises(openai.NotFoundError):
        say(client, "b")
    assert "b" not in {model.id for model in client.models.list()}
    # What was unloaded leaves when its last request has, which nobody waits for.
    eventually("its place is free", lambda: post(server, "load_lora_adapter", lora_name="c",
                            lora_path=str(adapters["c"])).status_code == 200)
    assert post(server, "load_lora_adapter", lora_name="c", lora_path=str(adapters["b"]),
                load_inplace=True, base_model_name="smollm").status_code == 200
    assert say(client, "c") == alone["b"], "the adapter was replaced"
    assert post(server, "unload_lora_adapter", lora_name="c").status_code == 200
    assert say(client, "smollm") == base


def test_an_adapter_chats_and_embeds(client):
    chat = client.chat.completions.create(
        model="a", max_tokens=4, messages=[{"role": "user", "content": "Hello"}])
    assert chat.model == "a" and chat.choices[0].message.content
    one, other = (client.embeddings.create(model=name, input="a cat").data[0].embedding
                  for name in ["smollm", "a"])
    assert len(one) == len(other) == HIDDEN and one != other


@pytest.mark.parametrize("change, status, expected", [
    ({"lora_path": "wide"}, 400, "`r`: expected at most 8, got 16"),
    ({"lora_path": "biased"}, 400, "`bias`: expected `none`, got `all`"),
    ({"lora_path": "nowhere"}, 400, "adapter_config.json"),
    ({"lora_name": "smollm"}, 409, "a model that is no adapter is called `smollm`"),
    ({"lora_name": "a"}, 409, "the adapter `a` is loaded already"),
    ({"lora_name": ""}, 400, "`lora_name`: expected a text that is not empty"),
    ({"lora_path": None}, 400, "`lora_path`: is missing"),
    ({"base_model_name": "mock"}, 400, "model `mock` takes no adapters"),
    ({"base_model_name": "none"}, 400, "its base"),
])
def test_what_cannot_be_loaded_is_told(server, adapters, change, status, expected):
    body = {"lora_name": "new", "lora_path": "b", **change}
    if body["lora_path"]:
        body["lora_path"] = str(adapters.get(body["lora_path"], body["lora_path"]))
    answer = post(server, "load_lora_adapter", **body)
    assert expected in answer.text and answer.status_code == status, answer.text


def test_what_is_no_adapter_is_not_unloaded(server):
    for name in ["smollm", "nothing"]:
        answer = post(server, "unload_lora_adapter", lora_name=name)
        assert answer.status_code == 404 and f"no adapter is called `{name}`" in answer.text
