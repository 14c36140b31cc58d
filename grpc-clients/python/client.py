"""Shows Stator's gRPC service with tritonclient: client.py [host:port] [model]"""

import argparse
import queue

import numpy as np
import tritonclient.grpc as triton


def show_metadata(client, model):
    inputs = client.get_model_metadata(model).inputs
    print("metadata:", ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in inputs))


def show_config(client, model):
    config = client.get_model_config(model).config
    decoupled = str(config.model_transaction_policy.decoupled).lower()
    print(f"config: max_batch_size {config.max_batch_size}, decoupled {decoupled}")


def infer_sums(client):
    rows = {"INPUT0": np.arange(16, dtype=np.int32), "INPUT1": np.full(16, 100, dtype=np.int32)}
    inputs = [tensor(name, row.reshape(1, 16), "INT32") for name, row in rows.items()]
    # tritonclient decodes raw_output_contents; plain.py shows what is in there.
    sums = client.infer("add_sub", inputs).as_numpy("OUTPUT0")
    print("infer:", *sums.flatten())


def stream_text(client, model):
    print("stream:", end="")
    for text, is_last in generate(client, model, "The capital of France is", {"max_tokens": 16}):
        print(text, end="", flush=True)
        if is_last:
            print()
            client.stop_stream()
            return
    raise RuntimeError("the stream ended before its last response")


def cancel_after_three(client, model):
    long = {"max_tokens": 1000, "ignore_eos": True}
    tokens = 0
    try:
        for _ in generate(client, model, "Once upon a time", long):
            tokens += 1  # some more may have arrived before the cancel
            if tokens == 3:
                client.stop_stream(cancel_requests=True)
    except triton.InferenceServerException as error:
        if error.status() != "StatusCode.CANCELLED":
            raise
    print("cancel: CANCELLED after 3 tokens")


def generate(client, model, prompt, settings):
    """Opens a stream with one request on it and yields each new text and whether it is the last."""
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    text = tensor("text_input", np.array([prompt], dtype=object), "BYTES")
    settings = {"stream": True, "temperature": 0.0, **settings}
    client.async_stream_infer(model, [text], parameters=settings)
    while True:
        result, error = answers.get()
        if error:
            raise error
        final = result.get_response().parameters["triton_final_response"].bool_param
        yield result.as_numpy("text_output")[0].decode(), final


def tensor(name, values, datatype):
    made = triton.InferInput(name, values.shape, datatype)
    made.set_data_from_numpy(values)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?", default="localhost:8001")
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    with triton.InferenceServerClient(arguments.address) as client:
        show_metadata(client, arguments.model)
        show_config(client, arguments.model)
        infer_sums(client)
        stream_text(client, arguments.model)
        cancel_after_three(client, arguments.model)


if __name__ == "__main__":
    main()
