"""A real encoder, all-MiniLM-L6-v2, through both doors, against sentence-transformers' vectors."""

import json

import numpy as np
import openai
import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from conftest import ROOT, running, sdk_of
from patience import PATIENCE_SECONDS
from real_models import real_encoder

GOLDEN = json.loads((ROOT / "tests/data/minilm.json").read_text())
FITTING = [case for case in GOLDEN if not case["is_cut"]]
[CUT] = [case for case in GOLDEN if case["is_cut"]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A server with the encoder, from the command line and from a model repository."""
    model = real_encoder()
    repository = tmp_path_factory.mktemp("repository")
    (repository / "shelf").mkdir()
    (repository / "shelf" / "1").symlink_to(model)
    with running(f"minilm={model}", "--model-repository", str(repository), "--builtin",
                 "mock") as server:
        yield server
        assert server.is_running(), "the server died:\n" + "".join(server.log[-50:])


@pytest.fixture(scope="module")
def client(encoder):
    with sdk_of(encoder) as client:
        yield client


def distance(a, b):
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b))


def texts(name, values):
    made = triton.InferInput(name, [len(values)], "BYTES")
    made.set_data_from_numpy(np.array([value.encode() for value in values], dtype=object))
    return made


def infer(encoder, inputs, model="minilm", **options):
    with triton.InferenceServerClient(encoder.address) as client:
        return client.infer(model, inputs, **options)


def test_vectors_are_those_of_sentence_transformers(encoder, client):
    asked = [case["text"] for case in FITTING]
    for model in ["minilm", "shelf"]:
        answer = client.embeddings.create(model=model, input=asked)
        assert answer.usage.prompt_tokens == sum(case["tokens"] for case in FITTING)
        for case, vector in zip(FITTING, answer.data, strict=True):
            assert distance(vector.embedding, case["vector"]) <= 1e-6, case["text"]
            assert abs(np.linalg.norm(vector.embedding) - 1) < 1e-5
        tensors = infer(encoder, [texts("text_input", asked)], model).as_numpy("embedding")
        assert (tensors == np.array([v.embedding for v in answer.data], np.float32)).all()


def test_a_text_alone_has_the_same_bits(client):
    together = client.embeddings.create(model="minilm", input=[case["text"] for case in FITTING])
    for case, vector in list(zip(FITTING, together.data))[::5]:
        alone = client.embeddings.create(model="minilm", input=case["text"])
        assert alone.data[0].embedding == vector.embedding


def test_fewer_dimensions_are_scaled_again(client):
    whole = client.embeddings.create(model="minilm", input="a cat").data[0].embedding
    part = client.embeddings.create(model="minilm", input="a cat", dimensions=16).data[0].embedding
    expected = np.array(whole[:16]) / np.linalg.norm(whole[:16])
    assert np.allclose(part, expected, atol=1e-6)


def test_a_text_that_is_too_long_is_refused_with_both_numbers_or_cut(encoder, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="minilm", input=["short", CUT["text"]])
    assert "722 tokens" in refused.value.message and "at most 256" in refused.value.message
    assert refused.value.code == "context_length_exceeded"
    for most in [-1, 256, 100_000]:
        cut = client.embeddings.create(model="minilm", input=CUT["text"],
                                       extra_body={"truncate_prompt_tokens": most})
        assert cut.usage.prompt_tokens == 256
        assert distance(cut.data[0].embedding, CUT["vector"]) <= 1e-6
    with pytest.raises(InferenceServerException, match="722 tokens"):
        infer(encoder, [texts("text_input", [CUT["text"]])])
    most = triton.InferInput("truncate_prompt_tokens", [1], "INT32")
    most.set_data_from_numpy(np.array([256], np.int32))
    cut = infer(encoder, [texts("text_input", [CUT["text"]]), most]).as_numpy("embedding")
    assert distance(cut[0], CUT["vector"]) <= 1e-6
    with pytest.raises(openai.BadRequestError, match="truncate_prompt_tokens"):
        client.embeddings.create(model="minilm", input="a",
                                 extra_body={"truncate_prompt_tokens": 0})


def test_tokens_are_taken_as_they_are(encoder, client):
    url = f"http://{encoder.http}/v1"
    tokens = requests.post(f"{url}/tokenize", json={"model": "minilm", "prompt": "A cat sleeps."},
                           timeout=PATIENCE_SECONDS).json()
    assert tokens["tokens"] == [101, 1037, 4937, 25126, 1012, 102]
    assert tokens["max_model_len"] == 256
    text = requests.post(f"{url}/detokenize", json={"model": "minilm", "tokens": tokens["tokens"]},
                         timeout=PATIENCE_SECONDS).json()
    assert text == {"prompt": "[CLS] a cat sleeps. [SEP]"}
    by_tokens = client.embeddings.create(model="minilm", input=tokens["tokens"])
    by_text = client.embeddings.create(model="minilm", input="A cat sleeps.")
    assert by_tokens.data[0].embedding == by_text.data[0].embedding
    with pytest.raises(openai.BadRequestError, match="token 30522 is not one of"):
        client.embeddings.create(model="minilm", input=[30522])


def test_documents_are_ranked(encoder):
    query = "Where did the cat sit?"
    documents = ["Rust is a programming language.", "The cat sat on the mat.", "A dog barks."]
    answer = requests.post(f"http://{encoder.http}/v1/rerank", timeout=PATIENCE_SECONDS, json={
        "model": "minilm", "query": query, "documents": documents}).json()
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    scores = infer(encoder, [texts("query", [query]), texts("documents", documents)])
    scores = scores.as_numpy("relevance_score")
    for result in answer["results"]:
        assert abs(scores[result["index"]] - result["relevance_score"]) < 1e-6
    assert scores[1] > 0.8 > 0.6 > scores[0]


def test_an_encoder_makes_no_text(encoder, client):
    why = "`minilm` makes embeddings and no text"
    with pytest.raises(openai.BadRequestError, match=why):
        client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match=why) as refused:
        client.completions.create(model="minilm", prompt="a")
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError, match=why):
        client.responses.create(model="minilm", input="a")
    with pytest.raises(InferenceServerException, match="messages"):
        infer(encoder, [texts("messages", ["[]"])])
    with pytest.raises(InferenceServerException, match="text_output"):
        outputs = [triton.InferRequestedOutput("text_output")]
        infer(encoder, [texts("text_input", ["a"])], outputs=outputs)


def test_its_metadata_and_its_place_in_the_list(encoder, client):
    with triton.InferenceServerClient(encoder.address) as kserve:
        metadata = kserve.get_model_metadata("minilm", as_json=True)
    assert {tensor["name"] for tensor in metadata["outputs"]} == {"embedding", "relevance_score"}
    inputs = {tensor["name"] for tensor in metadata["inputs"]}
    assert inputs == {"text_input", "input_ids", "query", "documents", "dimensions",
                      "truncate_prompt_tokens"}
    listed = {model.id: model for model in client.models.list()}
    assert listed["minilm"].max_model_len == 256
