"""What a registered function is: its card, and how it answers a request.

Each kind of model turns a message of the protocol into the function's arguments and what the
function gives into messages.
"""

import asyncio
import contextlib
import dataclasses

from google.protobuf import text_format

from . import card as cards
from . import context as contexts
from . import tokenizer as tokenizers
from . import wire
from .errors import Internal, InvalidRequest, Unimplemented
from .running import Runner

STOP = wire.worker.number("FinishReason", "FINISH_REASON_STOP")
LENGTH = wire.worker.number("FinishReason", "FINISH_REASON_LENGTH")


class Model:
    """A function with a card. `method` is the call of the protocol that asks it."""

    method = None
    # What the function gets, as its author would call it.
    argument = None

    def __init__(self, card, function, concurrency=None, max_waiting=1024, aliases=()):
        self.card = card
        self.name = card.json["name"]
        if aliases:
            card.json["aliases"] = list(aliases)
        self.runner = Runner(function, concurrency, max_waiting)
        if self.argument is not None:
            self.runner.check_call(self.name, self.argument)

    def load(self):
        """Returns how busy it is."""
        runner = self.runner
        return wire.worker.Load(waiting_requests=runner.waiting, running_sequences=runner.running)

    async def answer(self, message, request, queue_ns, send):
        """Answers a request by messages that it gives to `send`, which waits for the reader."""
        raise NotImplementedError


class TensorModel(Model):
    """Arrays by the names of the inputs in, arrays by the names of the outputs out; a generator is
    a decoupled model."""

    method = "Infer"

    def __init__(self, name, function, inputs, outputs, config, max_batch_size, has_sequences,
                 **options):
        super().__init__(cards.Card(name, "tensor", "tensor"), function, **options)
        is_stream = self.runner.is_stream
        if config is None:
            config = cards.tensor_config(name, inputs or {}, outputs or {}, max_batch_size,
                                         is_stream, has_sequences)
        else:
            beside = {"inputs": inputs, "outputs": outputs, "max_batch_size": max_batch_size,
                      "sequences": has_sequences}
            if given := [f"`{word}`" for word, value in beside.items() if value]:
                raise ValueError(f"model `{name}`: expected `config` alone, since it says all, got "
                                 f"{' and '.join(given)} beside it")
            config = text_format.Parse(config, wire.triton.ModelConfig())
            config.name = name
            config.model_transaction_policy.decoupled = is_stream
            batching = config.dynamic_batching
            policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
            if any(policy.max_queue_size for policy in policies):
                raise ValueError(f"model `{name}`: `max_queue_size` has no effect here: expected "
                                 "`max_waiting` in its place")
        self._check_inputs(config.input)
        self.outputs = cards.datatypes(config.output)
        self.card.set_tensors(config)

    def _check_inputs(self, inputs):
        """Checks that the function takes all inputs, and goes without those that may be left out."""
        for wanted in (inputs, [tensor for tensor in inputs if not tensor.optional]):
            self.runner.check_call(self.name, **{tensor.name: None for tensor in wanted})

    async def answer(self, message, request, queue_ns, send):
        from . import tensors

        request.parameters = {key: _parameter(value) for key, value in message.parameters.items()}
        contents = list(message.contents)
        has_sequence = message.HasField("sequence")
        kept = message.sequence.state if has_sequence else []
        if len(contents) != len(message.inputs) + len(kept):
            raise InvalidRequest(f"`contents`: expected {len(message.inputs) + len(kept)} entries, "
                                 f"got {len(contents)}")
        arrays = tensors.read_all(message.inputs, contents)
        if has_sequence:
            sequence, which = message.sequence, message.sequence.WhichOneof("id")
            state = tensors.read_all(kept, contents[len(message.inputs):])
            request.sequence = contexts.Sequence(
                getattr(sequence, which) if which else "", sequence.start, sequence.end, state)
        wanted = {output.name for output in message.outputs} or set(self.outputs)
        async with contextlib.aclosing(self.runner.values(**arrays)) as values:
            async for value in values:
                output = self._output(value, wanted)
                output.is_last, output.queue_time_ns = not self.runner.is_stream, queue_ns
                await send(output)
        if has_sequence:
            await send(self._state(request.sequence.state))

    def _output(self, value, wanted):
        from . import tensors

        if not isinstance(value, dict):
            if len(self.outputs) != 1:
                raise Internal(f"model `{self.name}`: expected a dict of {len(self.outputs)} "
                               f"outputs, got {type(value).__name__}")
            value = dict.fromkeys(self.outputs, value)
        if unknown := value.keys() - self.outputs.keys():
            raise Internal(f"model `{self.name}` has no output `{sorted(unknown)[0]}`")
        output = wire.worker.InferOutput()
        for name in value.keys() & wanted if len(wanted) < len(value) else value:
            tensor, data = tensors.write(name, value[name], self.outputs[name])
            output.tensors.append(tensor)
            output.contents.append(data)
        return output

    def _state(self, state):
        from . import tensors

        output = wire.worker.InferOutput()
        output.state.SetInParent()
        for name, value in state.items():
            tensor, data = tensors.write(name, value)
            output.state.tensors.append(tensor)
            output.contents.append(data)
        return output


def _parameter(value):
    which = value.WhichOneof("value")
    return getattr(value, which) if which else None


@dataclasses.dataclass(frozen=True)
class Token:
    """A token with its log-probability, for models that tell it."""

    id: int
    logprob: float = 0.0
    # Its place; 1 is the most likely.
    rank: int = 1
    # The best tokens with their log-probabilities, most likely first.
    top: tuple[tuple[int, float], ...] = ()

    def message(self):
        """Returns the log-probability as the protocol has it."""
        return wire.worker.TokenLogprobs(
            logprob=self.logprob, rank=self.rank, top_tokens=[id for id, _ in self.top],
            top_logprobs=[logprob for _, logprob in self.top])


class TokenModel(Model):
    """The prompt's tokens in; tokens out, one at a time or several."""

    method, argument = "Generate", "tokens"

    def __init__(self, name, function, tokenizer, context_length, has_logprobs, is_guided, parsers,
                 **options):
        tables = tokenizers.read(tokenizer)
        card = cards.Card(name, "chat" if tables.has_template else "text", "token")
        card.set_tokenizer(tables, context_length)
        card.json |= {key: parser for key, parser in parsers.items() if parser}
        super().__init__(card, function, **options)
        self.eos = frozenset(tables.eos_tokens)
        self.context_length = card.json["context_length"]
        self.has_logprobs, self.is_guided = has_logprobs, is_guided

    def check(self, message):
        """Refuses what the function cannot do, so that nothing is ignored."""
        if message.HasField("guided") and not self.is_guided:
            raise Unimplemented(f"model `{self.name}` keeps no constraints")
        if message.HasField("prompt_logprobs"):
            raise Unimplemented(f"model `{self.name}` tells no log-probabilities of prompts")
        if message.HasField("logprobs") and not self.has_logprobs:
            raise Unimplemented(f"model `{self.name}` tells no log-probabilities")
        if not message.tokens or not message.stop.max_tokens:
            raise InvalidRequest("expected at least one token, and `max_tokens` of at least 1")
        if len(message.tokens) >= self.context_length:
            raise InvalidRequest(
                f"the prompt has {len(message.tokens)} tokens, expected less than the context of "
                f"{self.context_length}", code="context_length_exceeded")

    async def answer(self, message, request, queue_ns, send):
        request.sampling, request.stop = message.sampling, message.stop
        request.logprobs = message.logprobs if message.HasField("logprobs") else None
        request.guided = message.guided if message.HasField("guided") else None
        request.generated = message.generated

        async def one(index):
            choice = message.choice_offset + index
            contexts.enter(dataclasses.replace(request, choice=choice))
            await self._continue(message, index, queue_ns, send)

        await each(message.choices or 1, one)

    async def _continue(self, message, index, queue_ns, send):
        prompt, stop = list(message.tokens), message.stop
        limit = min(stop.max_tokens, self.context_length - len(prompt))
        ends = set(stop.stop_token_ids) if stop.ignore_eos else self.eos.union(stop.stop_token_ids)
        drawn, finish, output = 0, None, self._empty(index, queue_ns)
        async with contextlib.aclosing(self.runner.values(prompt)) as values:
            async for value in values:
                for token in value if isinstance(value, list) else [value]:
                    drawn += 1
                    if (token.id if isinstance(token, Token) else token) in ends:
                        finish = STOP
                        _end(output, token, message)
                    else:
                        _append(output, token, message)
                        finish = LENGTH if drawn == limit else None
                    if finish is not None:
                        break
                if finish is not None:
                    break
                if output.tokens:
                    await send(output)
                    output = self._empty(index, queue_ns)
        output.finish = STOP if finish is None else finish
        output.usage.prompt_tokens, output.usage.completion_tokens = len(prompt), drawn
        await send(output)

    @staticmethod
    def _empty(index, queue_ns):
        return wire.worker.GenerateOutput(index=index, queue_time_ns=queue_ns)


def _append(output, token, message):
    if isinstance(token, Token):
        output.tokens.append(token.id)
        if message.HasField("logprobs"):
            output.logprobs.append(token.message())
        return
    if message.HasField("logprobs"):
        raise Internal("log-probabilities were asked for: expected a `Token`, got an `int`")
    output.tokens.append(int(token))


def _end(output, token, message):
    """Tells the log-probability of the token that ended the text, if the model does and it was asked for."""
    if isinstance(token, Token) and message.HasField("logprobs"):
        output.end_token = token.id
        output.end_logprobs.CopyFrom(token.message())


async def each(count, answer):
    """Answers all choices of a request at the same time; the first failure ends the others."""
    if count == 1:
        return await answer(0)
    try:
        async with asyncio.TaskGroup() as group:
            for index in range(count):
                group.create_task(answer(index))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


class EmbeddingModel(Model):
    """The tokens of a text in, one vector out."""

    method, argument = "Embed", "tokens"

    def __init__(self, name, function, tokenizer, context_length, **options):
        card = cards.Card(name, "embedding", "token")
        card.set_tokenizer(tokenizers.read_encoder(tokenizer), context_length)
        super().__init__(card, function, **options)

    async def answer(self, message, request, queue_ns, send):
        async with contextlib.aclosing(self.runner.values(list(message.tokens))) as values:
            async for value in values:
                await send(wire.worker.Embedding(values=[float(number) for number in value]))
                return
