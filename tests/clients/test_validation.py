"""Each line of Triton's table of refusals: the code, and the part of the text people look for."""

import grpc
import pytest

from wire import Stream, floats, ints, refused, request, strings, tensor

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
FLOAT = tensor("INPUT0", "FP32", [2])
ROW = ints(*range(16))


def pair(left, right):
    return [tensor("INPUT0", "INT32", left), tensor("INPUT1", "INT32", right)]


TABLE = {
    "unknown model": (request("nope"), NOT_FOUND,
                      "Request for unknown model: 'nope' is not found"),
    "empty name": (request(""), NOT_FOUND, "Request for unknown model: '' is not found"),
    "unknown version": (request("identity", [FLOAT], [floats(1, 2)], version="9"), NOT_FOUND,
                        "Request for unknown model: 'identity' version 9 is not found"),
    "version 0": (request("identity", version="0"), NOT_FOUND, "version 0 is not found"),
    "version -1": (request("identity", version="-1"), INVALID, "invalid model version specified"),
    "version abc": (request("identity", version="abc"), INVALID,
                    "invalid model version specified"),
    "version 1abc": (request("identity", version="1abc"), INVALID,
                     "invalid model version specified"),
    "missing input": (request("simple", [tensor("INPUT0", "INT32", [1, 16])], [ROW]), INVALID,
                      "expected 2 inputs but got 1 inputs for model 'simple'. "
                      "Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']"),
    "no input": (request("identity"), INVALID, "expected 1 inputs but got 0 inputs"),
    "unexpected input": (request("identity", [tensor("X", "FP32", [2])], [floats(1, 2)]), INVALID,
                         "unexpected inference input 'X' for model 'identity'"),
    "the count wins": (request("identity", [FLOAT, tensor("X", "FP32", [1])],
                               [floats(1, 2), floats(1)]), INVALID,
                       "expected 1 inputs but got 2 inputs"),
    "unknown output": (request("identity", [FLOAT], [floats(1, 2)], outputs=["X"]), INVALID,
                       "unexpected inference output 'X' for model 'identity'"),
    "duplicate input": (request("simple", [tensor("INPUT0", "INT32", [1, 16])] * 2, [ROW] * 2),
                        INVALID, "already exists in request"),
    "wrong dtype": (request("identity", [tensor("INPUT0", "INT32", [2])], [ints(1, 2)]), INVALID,
                    "inference input 'INPUT0' data-type is 'INT32', "
                    "but model 'identity' expects 'FP32'"),
    "unknown dtype": (request("identity", [tensor("INPUT0", "FP99", [2])], [floats(1, 2)]),
                      INVALID, "inference input 'INPUT0' data-type is '<invalid>'"),
    "lower-case dtype": (request("identity", [tensor("INPUT0", "fp32", [2])], [floats(1, 2)]),
                         INVALID, "data-type is '<invalid>'"),
    "wrong dims": (request("simple", pair([1, 8], [1, 8]), [ints(*range(8))] * 2), INVALID,
                   "unexpected shape for input 'INPUT0' for model 'simple'. "
                   "Expected [-1,16], got [1,8]"),
    "wrong rank": (request("identity", [tensor("INPUT0", "FP32", [1, 2])], [floats(1, 2)]),
                   INVALID, "unexpected shape for input 'INPUT0' for model 'identity'. "
                            "Expected [-1], got [1,2]"),
    "negative dim": (request("identity", [tensor("INPUT0", "FP32", [-1])], [floats(1, 2)]),
                     INVALID, "All input dimensions should be specified"),
    "no batch dimension": (request("simple", pair([], []), [b"", b""]), INVALID,
                           "has no shape but model requires batch dimension"),
    "batches differ": (request("simple", pair([1, 16], [2, 16]), [ROW, ROW + ROW]), INVALID,
                       "batch size does not match other inputs"),
    "batch too large": (request("simple", pair([9, 16], [9, 16]), [ROW * 9] * 2), INVALID,
                        "inference request batch-size must be <= 8 for 'simple'"),
    "wrong byte size": (request("identity", [FLOAT], [floats(1)]), INVALID,
                        "input byte size mismatch for input 'INPUT0' for model 'identity'. "
                        "Expected 8, got 4"),
    "odd byte size": (request("identity", [FLOAT], [b"1234567"]), INVALID, "Expected 8, got 7"),
    "typed count": (request("identity", [tensor("INPUT0", "FP32", [2], fp32_contents=[1])]),
                    INVALID, "input byte size mismatch"),
    "zero batch": (request("batched", [tensor("INPUT0", "FP32", [0, 16])], [floats(1)]), INVALID,
                   "INPUT0"),
    "too many strings": (request("identity_bytes", [tensor("INPUT0", "BYTES", [1])],
                                 [strings("a", "b")]), INVALID,
                         "unexpected number of string elements 2"),
    "too few strings": (request("identity_bytes", [tensor("INPUT0", "BYTES", [2])],
                                [strings("a")]), INVALID, "expected 2 string elements"),
    "cut string length": (request("identity_bytes", [tensor("INPUT0", "BYTES", [1])],
                                  [b"\x01\x00"]), INVALID, "incomplete string length indicator"),
    "cut string data": (request("identity_bytes", [tensor("INPUT0", "BYTES", [1])],
                                [b"\x09\x00\x00\x00abc"]), INVALID, "incomplete string data"),
    "no data": (request("identity", [FLOAT]), INVALID,
                "unable to find data for input tensor 'INPUT0' for model 'identity' in request."),
    "typed and raw": (request("simple", [tensor("INPUT0", "INT32", [1, 16],
                                                int_contents=range(16)),
                                         tensor("INPUT1", "INT32", [1, 16])], [ROW]), INVALID,
                      "contents field must not be specified when using raw_input_contents"),
    "wrong contents": (request("identity", [tensor("INPUT0", "FP32", [2], int_contents=[1, 2])]),
                       INVALID, "INPUT0"),
    "two contents": (request("identity", [tensor("INPUT0", "FP32", [1], int_contents=[1],
                                                 fp32_contents=[1])]), INVALID, "INPUT0"),
    "typed INT8 of 300": (request("identity_int8", [tensor("INPUT0", "INT8", [1],
                                                           int_contents=[300])]), INVALID, "300"),
    "typed FP16": (request("identity_fp16", [tensor("INPUT0", "FP16", [1], fp32_contents=[1])]),
                   INVALID, "INPUT0"),
    "overflowing shape": (request("identity_int8", [tensor("INPUT0", "INT8", [2**62])], [b"1"]),
                          INVALID, "INPUT0"),
    "decoupled, unary": (request("repeat_int32"), UNIMPLEMENTED,
                         "doesn't support models with decoupled transaction policy"),
    "reserved parameter": (request("identity", [FLOAT], [floats(1, 2)],
                                   parameters={"triton_x": True}), INVALID,
                           "parameter keys starting with 'triton_' are reserved"),
    "mistyped parameter": (request("identity", [FLOAT], [floats(1, 2)],
                                   parameters={"sequence_start": 1}), INVALID,
                           "invalid value type for 'sequence_start' parameter"),
    "unset parameter": (request("identity", [FLOAT], [floats(1, 2)], parameters={"p": None}),
                        INVALID, "'p' parameter"),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_bad_request_gets_tritons_code_and_words(stub, case):
    sent, code, fragment = TABLE[case]
    if case == "unset parameter":
        sent.parameters["p"].SetInParent()
    refused(lambda: stub.ModelInfer(sent), code, fragment)


@pytest.mark.parametrize("case", [case for case in TABLE if case != "decoupled, unary"])
def test_the_same_request_on_a_stream_is_answered_in_band(stub, case):
    sent, _, fragment = TABLE[case]
    sent.id = "bad"
    stream = Stream(stub)
    stream.send(sent, request("identity", [FLOAT], [floats(1, 2)], id="good"))
    stream.close()
    bad, good = sorted(stream, key=lambda message: message.infer_response.id)
    assert fragment in bad.error_message
    assert bad.infer_response.id == "bad"
    assert good.infer_response.id == "good" and not good.error_message


def test_a_validation_error_names_the_request(stub):
    refused(lambda: stub.ModelInfer(request("identity", id="r-7")), INVALID, "[request id: r-7] ")
    refused(lambda: stub.ModelInfer(request("identity")), INVALID, "[request id: <id_unknown>] ")


def test_a_broken_message_is_internal_and_an_unknown_method_unimplemented(channel):
    identity = lambda raw: raw
    path = "/inference.GRPCInferenceService/"
    broken = channel.unary_unary(path + "ModelInfer", identity, identity)
    refused(lambda: broken(b"\x0a\xff\xff\xff\xff\x7f"), grpc.StatusCode.INTERNAL)
    unknown = channel.unary_unary(path + "ModelDream", identity, identity)
    refused(lambda: unknown(b""), UNIMPLEMENTED)
    elsewhere = channel.unary_unary("/other.Service/Method", identity, identity)
    refused(lambda: elsewhere(b""), UNIMPLEMENTED)
