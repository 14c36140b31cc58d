"""The protocol's calls, as `worker.proto` has them: accepted or refused, answered, ended.

Response headers are sent on their own when a request has a place; whatever fails before that is a
status alone, so that the frontend may ask another worker.
"""

import asyncio
import json
import logging
import time

import grpc

from . import context as contexts
from . import wire
from .errors import DeadlineExceeded, Error, Internal, NotFound, Unavailable, Unimplemented

CHUNK_BYTES = 256 << 10
MAX_MESSAGE_BYTES = 1 << 30
MAX_CALLS = 4096
SERVICE = "stator.worker.v1.Worker"

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", MAX_CALLS),
    # Frontends ping every few seconds, whether calls are open or not.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    # A second worker at the same port is a mistake and not a helper.
    ("grpc.so_reuseport", 0),
]

# Calls of inference, and whether their answers are streams.
INFERENCE = {"Generate": ("GenerateRequest", True), "Infer": ("InferRequest", True),
             "Embed": ("EmbedRequest", False), "GenerateText": ("GenerateTextRequest", True),
             "EmbedText": ("EmbedTextRequest", False)}

log = logging.getLogger("stator_worker")


class Service:
    """The calls of one worker."""

    def __init__(self, models):
        self.models = {model.name: model for model in models}
        self.open_calls = 0
        self.is_draining = False
        # Set when nothing new is accepted any more, and whenever the last call has ended.
        self.draining, self.idle = asyncio.Event(), asyncio.Event()
        self.idle.set()

    def handler(self):
        """Returns the handler of all calls."""
        methods = {}
        for name, (message, is_stream) in INFERENCE.items():
            methods[name] = _method(message, self._inference(name, is_stream), is_stream)
        methods["Describe"] = _method("DescribeRequest", self.describe, False)
        methods["Drain"] = _method("DrainRequest", self.drain, False)
        methods["Fetch"] = _method("FetchRequest", self.fetch, True)
        methods["Watch"] = _method("WatchRequest", self.watch, True)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def begin_to_drain(self):
        """Accepts nothing new from now on."""
        self.is_draining = True
        self.draining.set()

    def _inference(self, method, is_stream):
        async def call(message, context):
            answers, writing = [], asyncio.Lock()

            async def send(output):
                if not is_stream:
                    answers.append(output)
                    return
                # Choices of a request write at the same time, which the stream does not bear.
                async with writing:
                    await context.write(output)

            self.open_calls += 1
            self.idle.clear()
            try:
                await self._guarded(self._answer(method, message, context, send), context)
                return answers[0] if answers else None
            finally:
                self.open_calls -= 1
                if not self.open_calls:
                    self.idle.set()

        return call

    async def _guarded(self, work, context):
        """Does the work of a call; what fails becomes the call's status."""
        deadline = asyncio.timeout(context.time_remaining())
        try:
            async with deadline:
                return await work
        except Error as error:
            failure = error
        except TimeoutError as error:
            failure = DeadlineExceeded("the request's own time is over")
            if not deadline.expired():
                log.exception("a model failed")
                failure = Internal(f"a function of the worker failed: {type(error).__name__}")
        except Exception as error:
            log.exception("a model failed")
            failure = Internal(f"a function of the worker failed: {type(error).__name__}")
        await context.abort(failure.status, failure.text(), failure.trailers())

    async def _answer(self, method, message, context, send):
        if self.is_draining:
            raise Unavailable("the worker goes away", code="draining")
        model = self._model(message.model)
        if model.method != method:
            raise Unimplemented(f"model `{model.name}` does not answer `{method}`")
        if getattr(message, "adapter", 0):
            raise NotFound(f"model `{model.name}` has no adapters")
        if hasattr(model, "check"):
            model.check(message)
        model.runner.check_room()
        request = _request(message, context)
        await context.send_initial_metadata(())
        contexts.enter(request)
        try:
            async with model.runner.place() as queue_ns:
                await model.answer(message, request, queue_ns, send)
        except BaseException:
            request._cancelled.set()
            raise

    def _model(self, name):
        if name not in self.models:
            raise NotFound(f"the worker has no model `{name}`", code="model_not_found")
        return self.models[name]

    async def describe(self, message, context):
        """Says what the worker serves and how it is."""
        def told(model):
            card = json.dumps(model.card.json).encode()
            return wire.worker.ServedModel(name=model.name, card=card, load=model.load())

        models = [told(model) for model in self.models.values()]
        return wire.worker.Description(models=models, is_draining=self.is_draining)

    async def drain(self, message, context):
        """Accepts nothing new from now on, as a frontend asks."""
        log.info("draining, as a frontend asks")
        self.begin_to_drain()
        return wire.worker.DrainReply(open_calls=self.open_calls)

    async def fetch(self, message, context):
        """Gives a file that a card names."""
        await self._guarded(self._fetch(message, context), context)

    async def _fetch(self, message, context):
        for model in self.models.values():
            content = model.card.files.get(message.hash)
            if content is not None:
                for at in range(0, len(content), CHUNK_BYTES):
                    await context.write(wire.worker.Chunk(data=content[at:at + CHUNK_BYTES]))
                return
        raise NotFound(f"the worker has no file `{message.hash}`")

    async def watch(self, message, context):
        """Tells of a model's load until the caller has enough or the worker goes away."""
        await self._guarded(self._watch(message, context), context)

    async def _watch(self, message, context):
        model = self._model(message.model)
        await context.send_initial_metadata(())
        interval = message.load_interval_ms / 1000 or None
        while not self.is_draining:
            if interval:
                await context.write(wire.worker.WorkerEvent(load=model.load()))
            try:
                await asyncio.wait_for(self.draining.wait(), interval)
            except TimeoutError:
                pass
        await context.write(wire.worker.WorkerEvent(draining=wire.worker.Draining()))


def _method(message, behavior, is_stream):
    read = getattr(wire.worker, message).FromString
    make = grpc.unary_unary_rpc_method_handler
    if is_stream:
        make = grpc.unary_stream_rpc_method_handler
    return make(behavior, request_deserializer=read,
                response_serializer=lambda output: output.SerializeToString())


def _request(message, context):
    left = context.time_remaining()
    about = message.context
    return contexts.Request(
        model=message.model, id=about.id, priority=about.priority,
        trace_parent=about.trace_parent,
        deadline=None if left is None else time.monotonic() + left)
