"""A worker: models, where it listens, where it registers, and its end in order."""

import asyncio
import json
import logging
import os
import re
import secrets
import signal
import time

import grpc

from . import addresses, models, texts
from .discovery import Registration, open_store
from .service import OPTIONS, Service

log = logging.getLogger("stator_worker")

INSTANCE_VERSION = 1
NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Variables of `stator worker` for what this package does not do.
IGNORED = ("STATOR_DISCOVERY_USER", "STATOR_DISCOVERY_PASSWORD_FILE", "STATOR_DISCOVERY_TLS_CA",
           "STATOR_DISCOVERY_TLS_CERT", "STATOR_DISCOVERY_TLS_KEY", "STATOR_DISCOVERY_TOKEN_FILE",
           "STATOR_KUBERNETES_POD", "STATOR_NATS", "STATOR_REQUEST_PLANE", "STATOR_EVENT_PLANE")
# How long a start waits for the store before it leaves it to the background.
REGISTER_SECONDS = 5.0
# How long frontends get to hear of the end before calls are refused.
LEAVE_SECONDS = 0.5


class Worker:
    """Models that this process offers to the frontends of a fleet.

    What is not given is read from the variables that `stator worker` has: STATOR_DISCOVERY,
    STATOR_WORKER_ADDRESS, STATOR_ADVERTISE, STATOR_NAMESPACE, STATOR_SHUTDOWN_GRACE_MS and, for
    `tls_cert`, `tls_key` and `tls_ca`, STATOR_WORKER_TLS_CERT, STATOR_WORKER_TLS_KEY and
    STATOR_WORKER_TLS_CLIENT_CA.

    With a certificate and its key, files of PEM, the worker speaks TLS; with `tls_ca` it lets in
    only frontends that show a certificate of these authorities.
    """

    def __init__(self, *, discovery=None, address=None, advertise=None, namespace=None,
                 shutdown_grace=None, tls_cert=None, tls_key=None, tls_ca=None):
        variables = os.environ
        self._discovery = discovery or variables.get("STATOR_DISCOVERY")
        self._address = address or variables.get("STATOR_WORKER_ADDRESS", "127.0.0.1:0")
        self._advertise = advertise or variables.get("STATOR_ADVERTISE")
        self._namespace = namespace or variables.get("STATOR_NAMESPACE", "default")
        if not NAMESPACE.fullmatch(self._namespace):
            raise ValueError("namespace: expected 1 to 128 letters, digits, `.`, `_` or `-`, got "
                             f"`{self._namespace}`")
        self._grace = _grace(variables) if shutdown_grace is None else shutdown_grace
        self._tls = addresses.Tls(
            tls_cert or variables.get("STATOR_WORKER_TLS_CERT"),
            tls_key or variables.get("STATOR_WORKER_TLS_KEY"),
            tls_ca or variables.get("STATOR_WORKER_TLS_CLIENT_CA"))
        addresses.check("address", self._address)
        if self._advertise:
            addresses.check("advertise", self._advertise, is_called=True)
        self._models = {}
        self._id, self._started = secrets.token_hex(8), time.time()
        self._service = None

    def tensor(self, name, *, inputs=None, outputs=None, config=None, max_batch_size=0,
               sequences=False, **options):
        """Registers a tensor model: `inputs` and `outputs` are `{"NAME": ("FP32", [-1])}`, the
        function takes numpy arrays by the inputs' names and returns or yields a dict of outputs, or
        the only one. `config` is a Triton ModelConfig as protobuf text: it stands for these,
        `max_batch_size` and `sequences`, and none of them may be given beside it.

        Options of all kinds of models: `concurrency`, how many requests are worked on at a time;
        `max_waiting`, how many wait then; `aliases`, further names.
        """
        return self._adding(lambda function: models.TensorModel(
            name, function, inputs, outputs, config, max_batch_size, sequences, **options))

    def tokens(self, name, *, tokenizer, context_length=None, logprobs=False, guided=False,
               tool_call_parser=None, reasoning_parser=None, **options):
        """Registers a text model that takes a prompt's tokens and yields tokens; `tokenizer` is a
        folder with a `tokenizer.json`, and with the chat template if it has one."""
        parsers = {"tool_call_parser": tool_call_parser, "reasoning_parser": reasoning_parser}
        return self._adding(lambda function: models.TokenModel(
            name, function, tokenizer, context_length, logprobs, guided, parsers, **options))

    def embedding(self, name, *, tokenizer=None, context_length=None, **options):
        """Registers an embedding model that returns a vector. It takes the text's tokens if a
        tokenizer is given, and the text if not."""
        if tokenizer is None:
            return self._adding(lambda function: texts.TextEmbeddingModel(
                name, function, context_length or 0, **options))
        return self._adding(lambda function: models.EmbeddingModel(
            name, function, tokenizer, context_length, **options))

    def chat(self, name, *, accepts=(), context_length=0, **options):
        """Registers a text model that takes the messages of a conversation and yields pieces of its
        answer. `accepts` names fields of the body that the function keeps, such as `tools`."""
        return self._adding(lambda function: texts.TextModel(
            name, function, True, accepts, context_length, **options))

    def text(self, name, *, accepts=(), context_length=0, **options):
        """Registers a text model that takes a prompt and yields pieces of what follows."""
        return self._adding(lambda function: texts.TextModel(
            name, function, False, accepts, context_length, **options))

    def _adding(self, make):
        def register(function):
            model = make(function)
            if model.name in self._models:
                raise ValueError(f"there is a model `{model.name}` already")
            self._models[model.name] = model
            return function
        return register

    def run(self):
        """Serves until SIGTERM or SIGINT; a second signal ends it at once."""
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        asyncio.run(self._run())
        if any(model.runner.busy for model in self._models.values()):
            # A plain function cannot be interrupted, and Python would wait for it.
            logging.shutdown()
            os._exit(0)

    async def _run(self):
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        serving = asyncio.create_task(self.serve(stop))

        def signalled():
            if stop.is_set():
                serving.cancel()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled)
        try:
            await serving
        except asyncio.CancelledError:
            log.warning("shut down; calls that took too long were cut off")

    async def serve(self, stop):
        """Serves until the event `stop` is set, and then ends in order."""
        if not self._models:
            raise ValueError("a worker needs at least one model")
        _warn_of_ignored(os.environ)
        store = open_store(self._discovery)
        self._service = Service(self._models.values())
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((self._service.handler(),))
        registration = None
        try:
            address = self._advertised(addresses.listen(server, self._address, self._tls))
            await server.start()
            registration = Registration(store, lambda: self._record(address))
            try:
                await asyncio.wait_for(registration.held.wait(), REGISTER_SECONDS)
            except TimeoutError:
                log.warning("the store is not there yet: frontends see the worker when it is")
            log.info("ready: instance %s at %s serves %s", self._id, address,
                     ", ".join(self._models))
            await _first(stop, self._service.draining)
            log.info("shutting down: calls under way may finish")
            await registration.end()
            registration = None
            await asyncio.sleep(LEAVE_SECONDS)
            self._service.begin_to_drain()
            await self._finish(server)
        finally:
            if registration is not None:
                await registration.end()
            await server.stop(None)
            for model in self._models.values():
                model.runner.close()

    async def _finish(self, server):
        try:
            await asyncio.wait_for(self._service.idle.wait(), self._grace)
            # The last answers and farewells are still being written.
            await server.stop(0.5)
            log.info("shut down")
        except TimeoutError:
            log.warning("shut down; calls that took too long were cut off")

    def _advertised(self, port):
        host, _, _ = self._address.rpartition(":")
        scheme = "grpcs" if self._tls.is_on else "grpc"
        if self._advertise:
            return f"{scheme}://{self._advertise}"
        if host in ("0.0.0.0", "[::]", ""):
            raise ValueError(f"address: `{self._address}` is every address of this machine; say by "
                             "`advertise` which one frontends call")
        return f"{scheme}://{host}:{port}"

    def _record(self, address):
        """Returns the instance's number and its record for a store."""
        record = {
            "version": INSTANCE_VERSION, "id": self._id, "namespace": self._namespace,
            "address": address, "cards": [model.card.json for model in self._models.values()],
            "started_unix_ms": int(self._started * 1000),
            "is_draining": self._service.is_draining,
        }
        return self._id, json.dumps(record).encode()


def _grace(variables):
    text = variables.get("STATOR_SHUTDOWN_GRACE_MS", "30000")
    if not text.isdecimal():
        raise ValueError(f"STATOR_SHUTDOWN_GRACE_MS: expected milliseconds, got `{text}`")
    return int(text) / 1000


async def _first(*events):
    """Waits until one of some events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _warn_of_ignored(variables):
    """Names the variables of `stator worker` that mean nothing here."""
    if ignored := [name for name in IGNORED if variables.get(name)]:
        log.warning("ignored, as this package meets only in a folder or an etcd without TLS and "
                    "users, and speaks only gRPC: %s", ", ".join(ignored))
