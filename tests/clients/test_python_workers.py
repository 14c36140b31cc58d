"""Workers in Python: the examples of the documentation, and what becomes of failures."""

import concurrent.futures
import contextlib
import json
import queue
import shutil
import subprocess
import threading
import time

import ml_dtypes
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from chaos import total
from conftest import free_port, sdk_of
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from python_workers import EXAMPLES, FAULTY, python_worker, write_tokenizer
from test_cluster import client_of, frontend, is_ready, joined
from test_rest_generate import generate


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tokenizer):
    """A frontend with a worker of each example and one with the tests' functions."""
    discovery, began = f"file://{tmp_path_factory.mktemp('fleet')}", time.monotonic()
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(frontend(discovery))
        stack.enter_context(python_worker(EXAMPLES / "tensors.py", discovery))
        stack.enter_context(python_worker(EXAMPLES / "tokens.py", discovery, tokenizer))
        stack.enter_context(python_worker(EXAMPLES / "embedding.py", discovery, tokenizer))
        stack.enter_context(python_worker(EXAMPLES / "chat.py", discovery))
        faulty = stack.enter_context(python_worker(FAULTY, discovery, tokenizer))
        with client_of(front) as client:
            for model in ("double", "count", "echo", "counts", "parrot", "fails", "breaks",
                          "sleeps", "works", "yields", "narrow", "adds", "mixed", "alphabet",
                          "lists", "spells", "letters", "caller", "lengths"):
                eventually(model, lambda: is_ready(client, model))
        yield front, faulty
        assert faulty.is_running(), "".join(faulty.log[-50:])
        # Among other things: nobody minded the frontend's pings. One of ten may be answered late.
        silent, pings = joined(front, "lost a worker: it is silent"), time.monotonic() - began
        assert joined(front, "lost a worker") == silent <= 1 + pings / 10


@pytest.fixture
def client(fleet):
    with client_of(fleet[0]) as client:
        yield client


@pytest.fixture
def sdk(fleet):
    with sdk_of(fleet[0]) as sdk:
        yield sdk


def tensor(name, values, datatype="INT32"):
    values = np.asarray(values)
    made = triton.InferInput(name, values.shape, datatype)
    made.set_data_from_numpy(values)
    return made


def ask(client, model, *values, **options):
    inputs = [tensor("IN", np.array(values, np.int32))]
    return client.infer(model, inputs, **options).as_numpy("OUT")


def streamed(client, model, name, *values):
    """Returns the values of a stream's outputs."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(model, [tensor(name, np.array(values, np.int32))],
                              enable_empty_final_response=True)
    found = []
    while True:
        result, error = answers.get(timeout=PATIENCE_SECONDS)
        assert error is None, error
        output = result.get_response().outputs
        if output:
            found.append(result.as_numpy(output[0].name)[0])
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    return found


@contextlib.contextmanager
def etcd_at(folder, ports):
    """Runs an etcd of its own for the length of a block."""
    binary = shutil.which("etcd")
    assert binary, "etcd is not installed: Debian's package is etcd-server"
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    process = subprocess.Popen(
        [binary, "--data-dir", str(folder), "--listen-client-urls", client,
         "--advertise-client-urls", client, "--listen-peer-urls", peer,
         "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
         "--unsafe-no-fsync"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"etcd://127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.wait()


def test_the_tensor_examples(client):
    values = np.linspace(-1, 1, 70_000, dtype=np.float32)
    answer = client.infer("double", [tensor("IN", values, "FP32")]).as_numpy("OUT")
    assert (answer == values * 2).all()
    assert streamed(client, "count", "N", 5) == [0, 1, 2, 3, 4]
    assert client.get_model_metadata("double").platform == ""
    assert client.get_model_config("count").config.model_transaction_policy.decoupled


def test_a_plain_generator_is_a_decoupled_model(fleet, client):
    assert streamed(client, "yields", "IN", 3) == [0, 1, 2]
    eventually("it is closed", lambda: fleet[1].says("closed"))


def test_types_batches_and_chosen_outputs(client):
    texts = np.array([["grüße"], [""], ["x" * 1000]], object)
    bits = np.array([[1.0, -2.0]] * 3, ml_dtypes.bfloat16)
    inputs = [tensor("TEXT", texts, "BYTES"), tensor("BITS", bits, "BF16")]
    answer = client.infer("mixed", inputs)
    upper = [text.decode() for text in answer.as_numpy("UPPER").ravel()]
    assert upper == ["GRÜSSE", "", "X" * 1000]
    assert (answer.as_numpy("BITS") == bits).all()
    assert answer.as_numpy("FLAGS").all()
    wanted = [triton.InferRequestedOutput("FLAGS")]
    outputs = client.infer("mixed", inputs, outputs=wanted).get_response().outputs
    assert [output.name for output in outputs] == ["FLAGS"]


def test_state_of_a_sequence_travels_with_its_requests(client):
    totals = [ask(client, "adds", step, sequence_id=9, sequence_start=step == 1,
                  sequence_end=step == 4)[0] for step in range(1, 5)]
    assert totals == [1, 3, 6, 10]


@pytest.mark.parametrize("number, code", [(0, "INVALID_ARGUMENT"), (1, "NOT_FOUND"),
                                          (2, "UNAVAILABLE"), (3, "UNAVAILABLE"),
                                          (4, "INTERNAL")])
def test_a_function_says_whose_fault_it_is(client, number, code):
    with pytest.raises(InferenceServerException) as failed:
        ask(client, "fails", number)
    assert failed.value.status().endswith(code), failed.value
    assert "because of" in failed.value.message()


def test_what_else_a_function_raises_is_the_workers_fault(fleet, client):
    for value, word in ((0, "expected INT32, got an array of float64"), (1, "ZeroDivisionError")):
        with pytest.raises(InferenceServerException) as failed:
            ask(client, "breaks", value)
        assert failed.value.status().endswith("INTERNAL")
        assert word in failed.value.message()
        assert "a secret" not in failed.value.message()
    # Its log is read by a thread of its own.
    eventually("the worker tells its own log", lambda: fleet[1].says("a secret"))


def test_a_full_queue_is_overload(fleet, client):
    begun = fleet[1].says("begun narrow")
    # One is computed and one waits, for as long as they are asked for.
    long = [tensor("IN", np.array([NEVER_MS], np.int32))]
    both = []
    for _ in range(2):
        both.append(client.async_infer("narrow", long, callback=lambda result, error: None))
        calls = len(both)
        eventually("a worker has it", lambda: total(fleet[0], "stator_worker_calls") == calls)
        eventually("one is computed", lambda: fleet[1].says("begun narrow") == begun + 1)
    for _ in range(4):
        with pytest.raises(InferenceServerException) as refused:
            ask(client, "narrow", 1)
        # Triton's word for a full queue.
        assert "the most that may" in refused.value.message(), refused.value
        assert refused.value.status().endswith("UNAVAILABLE"), refused.value
    for one in both:
        one.cancel()
    eventually("there is place again", lambda: total(fleet[0], "stator_worker_calls") == 0)
    assert ask(client, "narrow", 1)[0] == 1


def test_a_deadline_ends_the_work(fleet, client):
    for model, word in (("sleeps", "cancelled late"), ("works", "gave up")):
        with pytest.raises(InferenceServerException) as failed:
            ask(client, model, NEVER_MS, client_timeout=4, request_id="late")
        assert failed.value.status().endswith("DEADLINE_EXCEEDED")
        eventually(word, lambda: fleet[1].says(word))
    # The only thread of the model is free again.
    assert ask(client, "works", 1, client_timeout=PATIENCE_SECONDS)[0] == 1


def test_the_token_example_streams(sdk):
    chunks = list(sdk.completions.create(model="echo", prompt="Grüße 🎉!", stream=True,
                                         max_tokens=100, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].text for one in chunks if one.choices) == "Grüße 🎉!"
    length = len("Grüße 🎉!".encode())
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (length, length)


def test_a_chat_is_templated_by_the_frontend(sdk):
    answer = sdk.chat.completions.create(
        model="echo", max_tokens=100, messages=[{"role": "user", "content": "Hello"}])
    # The end of the turn, which the template wrote, ends the echo as well.
    assert answer.choices[0].message.content == "user: Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len("user: Hello") + 2


def test_limits_stops_and_choices(sdk):
    ask = {"model": "alphabet", "prompt": "a"}
    answer = sdk.completions.create(**ask, max_tokens=5, n=3)
    assert [choice.text for choice in answer.choices] == ["abcde", "bcdef", "cdefg"]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 15
    assert sdk.completions.create(**ask, max_tokens=9, stop="d").choices[0].text == "abc"
    stops = {"stop_token_ids": [ord("d") - ord("!")]}
    answer = sdk.completions.create(**ask, max_tokens=9, extra_body=stops)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc", "stop")


def steps(worker, word):
    """Returns how far a text was when it was closed, the last time that a worker told it."""
    line = [line for line in worker.log if word in line][-1]
    return int(line.split()[-2])


def test_a_client_that_leaves_closes_the_generator(fleet, sdk):
    before = fleet[1].says("text closed")
    chunks = sdk.completions.create(model="alphabet", prompt="a", max_tokens=200, stream=True)
    next(chunks)
    chunks.close()
    eventually("it is closed", lambda: fleet[1].says("text closed") > before)
    assert steps(fleet[1], "text closed") < 199, "it came to its end"


def test_log_probabilities_and_what_a_model_cannot_do(sdk):
    answer = sdk.completions.create(model="lists", prompt="ab", max_tokens=8, logprobs=2)
    assert answer.choices[0].logprobs.token_logprobs == [-0.5, -0.5]
    for model, options in (("alphabet", {"logprobs": 1}),
                           ("lists", {"extra_body": {"guided_choice": ["a", "b"]}})):
        with pytest.raises(openai.APIStatusError) as refused:
            sdk.completions.create(model=model, prompt="ab", max_tokens=8, **options)
        assert refused.value.status_code == 501, refused.value


def test_the_token_that_ends_a_text_is_scored(fleet):
    asked = {"text_input": "ab", "max_tokens": 8, "return_token_ids": True, "return_logprobs": True, "logprobs": 1,
             "return_num_output_tokens": True}
    whole = generate(fleet[0], "lists", **asked)
    _, last = json.loads(whole["token_ids"])
    ended = generate(fleet[0], "lists", **asked, stop_token_ids=[last])
    assert json.loads(ended["token_ids"]) == [last - 1]
    for answer in (whole, ended):
        assert answer["num_output_tokens"] == len(json.loads(answer["logprobs"])) == 2


def test_the_embedding_example(sdk):
    answer = sdk.embeddings.create(model="counts", input=["ab", "aab"])
    vectors = [one.embedding for one in answer.data]
    assert len(vectors[0]) == 512
    assert np.allclose(sorted(vectors[0])[-2:], 0.5 ** 0.5)
    assert np.allclose(sorted(vectors[1])[-2:], [0.2 ** 0.5, 0.8 ** 0.5])


def test_the_chat_example_takes_texts(sdk):
    ask = {"model": "parrot", "messages": [{"role": "user", "content": "Grüße aus Ulm"}]}
    answer = sdk.chat.completions.create(**ask)
    assert answer.choices[0].message.content == "Grüße aus Ulm "
    chunks = list(sdk.chat.completions.create(**ask, stream=True, max_tokens=2))
    parts = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert "".join(part or "" for part in parts) == "Grüße aus "
    assert chunks[-1].choices[0].finish_reason == "length"


def test_texts_pass_all_doors(client, sdk):
    for model in ("spells", "letters"):
        answer = sdk.completions.create(model=model, prompt="abc", max_tokens=9)
        assert answer.choices[0].text == "abc"
    answer = sdk.completions.create(model="spells", prompt="abcd", stop="c", n=2, max_tokens=9)
    assert [choice.text for choice in answer.choices] == ["ab", "ab"]
    text = tensor("text_input", np.array(["abc"], object), "BYTES")
    answer = client.infer("spells", [text],
                          parameters={"exclude_input_in_output": True}).as_numpy("text_output")
    assert answer[0].decode() == "abc"
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    answer = sdk.chat.completions.create(
        model="caller", messages=[{"role": "user", "content": "So"}], tools=tools)
    message = answer.choices[0].message
    assert message.content == "So!" and message.reasoning_content == "Hm."
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("look", '{"at":"it"}')]
    assert answer.usage.prompt_tokens == 7
    with pytest.raises(openai.APIStatusError) as refused:
        sdk.completions.create(model="spells", prompt="a", logprobs=1)
    assert refused.value.status_code == 501, refused.value
    with pytest.raises(openai.BadRequestError, match="continues prompts and takes no messages"):
        sdk.chat.completions.create(model="spells", messages=[{"role": "user", "content": "a"}])
    vector = sdk.embeddings.create(model="lengths", input="Grüße").data[0].embedding
    assert vector == [5.0, 7.0]


def test_a_client_that_leaves_ends_a_text(fleet, sdk):
    before = fleet[1].says("spelling closed")
    chunks = sdk.completions.create(model="spells", prompt="x" * 5000, max_tokens=9999, stream=True)
    next(chunks)
    chunks.close()
    eventually("it is closed", lambda: fleet[1].says("spelling closed") > before)
    assert steps(fleet[1], "spelling closed") < 4999, "it came to its end"


def test_a_worker_that_is_asked_to_end_finishes_and_fails_nobody(tmp_path, tokenizer):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, python_worker(FAULTY, discovery, tokenizer) as first, \
            client_of(front) as client, sdk_of(front) as sdk:
        eventually("it is ready", lambda: is_ready(client, "alphabet"))
        chunks = sdk.completions.create(model="alphabet", prompt="a", max_tokens=200, stream=True)
        next(chunks)
        with python_worker(FAULTY, discovery, tokenizer):
            eventually("another one joined", lambda: joined(front) == 2)
            first.terminate()
            for value in range(200):
                assert ask(client, "sleeps", 1)[0] == 1
            assert list(chunks)[-1].choices[0].finish_reason == "length"
            assert first.wait() == 0, "".join(first.log)
            assert first.says("shut down") and not first.says("cut off")


def test_a_text_goes_on_elsewhere_when_its_worker_is_killed(tmp_path, tokenizer):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, python_worker(FAULTY, discovery, tokenizer) as first, \
            client_of(front) as client, sdk_of(front) as sdk:
        eventually("it is ready", lambda: is_ready(client, "lists"))
        with python_worker(EXAMPLES / "tokens.py", discovery, tokenizer) as one, \
                python_worker(EXAMPLES / "tokens.py", discovery, tokenizer):
            eventually("the others joined", lambda: joined(front) == 3)
            eventually("their model is ready", lambda: is_ready(client, "echo"))
            prompt = "x" * 150
            texts = [sdk.completions.create(model="echo", prompt=prompt, max_tokens=150,
                                            stream=True) for _ in range(4)]
            # A part may have several letters already.
            begun = [next(text).choices[0].text for text in texts]
            one.stop()
            for start, text in zip(begun, texts):
                # It says its prompt and what it said before, so the first 150 stay the same.
                assert len(start + "".join(chunk.choices[0].text for chunk in text)) == 150
        assert first.is_running()


def test_workers_that_are_killed_fail_no_tensor_request(tmp_path):
    discovery, kills = f"file://{tmp_path}", 5
    values, is_over, done, failed = np.ones(4, np.float32), threading.Event(), [], []

    def load():
        with client_of(front) as client:
            while not is_over.is_set():
                try:
                    answer = client.infer("double", [tensor("IN", values, "FP32")])
                    done.append((answer.as_numpy("OUT") == 2).all())
                except Exception as error:  # whatever a client would see
                    failed.append(repr(error))

    with frontend(discovery, "--router-mode", "round-robin") as front, client_of(front) as client, \
            python_worker(EXAMPLES / "tensors.py", discovery):
        eventually("it is ready", lambda: is_ready(client, "double"))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            running = [pool.submit(load) for _ in range(4)]
            try:
                for kill in range(kills):
                    with python_worker(EXAMPLES / "tensors.py", discovery):
                        eventually("it joined", lambda: joined(front) >= 2 + kill)
                        before = len(done)
                        eventually("it is called", lambda: len(done) > before + 100)
            finally:
                is_over.set()
            [one.result() for one in running]
    print(f"{len(done)} requests, {kills} kills, {len(failed)} failed")
    assert done and all(done) and not failed, failed[:5]


@pytest.mark.parametrize("model", ["sleeps", "stuck"])
def test_what_does_not_end_is_cut_off(tmp_path, tokenizer, model):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, client_of(front) as client, \
            python_worker(FAULTY, discovery, tokenizer, shutdown_grace_ms=300) as only:
        eventually("it is ready", lambda: is_ready(client, model))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, client, model, 60_000)
            eventually("it works", lambda: only.says(f"begun {model}"))
            only.terminate()
            assert only.wait() == 0, "".join(only.log)
            assert only.says("cut off")
            assert isinstance(asked.exception(PATIENCE_SECONDS), InferenceServerException)


@pytest.mark.parametrize("store", ["static", "etcd"])
def test_other_ways_to_meet(tmp_path, store):
    with contextlib.ExitStack() as stack:
        if store == "etcd":
            discovery = where = stack.enter_context(etcd_at(tmp_path, [free_port(), free_port()]))
            settings = {}
        else:
            address = f"127.0.0.1:{free_port()}"
            discovery, where = "static://", f"static://{address}"
            settings = {"worker_address": address}
        worker = stack.enter_context(python_worker(EXAMPLES / "tensors.py", discovery, **settings))
        front = stack.enter_context(frontend(where))
        client = stack.enter_context(client_of(front))
        eventually("it is ready", lambda: is_ready(client, "double"))
        values = np.ones(4, np.float32)
        answer = client.infer("double", [tensor("IN", values, "FP32")]).as_numpy("OUT")
        assert (answer == 2).all()
        worker.terminate()
        assert worker.wait() == 0
        eventually("it is gone", lambda: not is_ready(client, "double"))


def test_a_worker_registers_again_after_etcd_lost_everything(tmp_path):
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        with etcd_at(tmp_path / "first", ports) as url:
            worker = stack.enter_context(python_worker(EXAMPLES / "tensors.py", url))
            front = stack.enter_context(frontend(url))
            client = stack.enter_context(client_of(front))
            eventually("it is ready", lambda: is_ready(client, "double"))
        values = np.ones(4, np.float32)

        def has_noticed():
            answer = client.infer("double", [tensor("IN", values, "FP32")]).as_numpy("OUT")
            assert (answer == 2).all()
            return worker.says("cannot register")

        eventually("the worker knows of the outage", has_noticed)
        with etcd_at(tmp_path / "second", ports) as url, frontend(url) as other, \
                client_of(other) as another:
            eventually("a new frontend finds it", lambda: is_ready(another, "double"))
            assert is_ready(client, "double")
            worker.terminate()
            assert worker.wait() == 0
            eventually("it is gone", lambda: not is_ready(another, "double"))
