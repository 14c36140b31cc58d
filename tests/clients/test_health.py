"""Standard health checks and reflection."""

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)

from conftest import running
from wire import refused

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "identity", "smollm"])
def test_check_knows_the_server_the_service_and_each_model(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


def test_check_of_an_unknown_name_is_not_found(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    refused(lambda: stub.Check(health_pb2.HealthCheckRequest(service="nope")),
            grpc.StatusCode.NOT_FOUND)


def test_watch_tells_when_the_server_drains():
    with running("--builtin", "mock,pace_ms=20") as server:
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="mock"))
            assert next(watch).status == SERVING
            threading.Timer(0.2, server.terminate).start()
            assert next(watch).status == NOT_SERVING


def test_reflection_lists_the_services(channel):
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
