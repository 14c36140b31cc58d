"""Models that take texts as texts: they have a template and a tokenizer themselves, or need none.

The request is the body of an OpenAI call. What limits and ends a text is kept here; what else a
body asks for and the function does not say that it does is refused, so that nothing is ignored.
"""

import contextlib
import dataclasses
import json
from typing import Any

from . import card as cards
from . import context as contexts
from . import wire
from .errors import Internal, InvalidRequest, Unimplemented
from .models import LENGTH, STOP, Model, each

FINISHES = {None: 0, "stop": STOP, "length": LENGTH}

# Fields that are kept here.
KEPT = {"messages", "prompt", "n", "max_tokens", "stop"}
# Fields that a function may heed or not: they change which text comes and not what it is.
HINTS = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
         "frequency_penalty", "seed", "ignore_eos", "skip_special_tokens", "reasoning_effort",
         "chat_template_kwargs", "add_generation_prompt", "tool_choice", "parallel_tool_calls", "priority"}
# Fields whose answers a `Delta` cannot hold.
LACKING = {"logprobs", "top_logprobs"}
MAX_CHOICES = 128


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is new in an answer, where a text alone does not say it."""

    content: str = ""
    # Of the model's thoughts.
    reasoning: str = ""
    # Of calls: dicts of `index`, `id`, `name` and `arguments`, which is JSON text.
    tool_calls: tuple[dict[str, Any], ...] = ()
    # `stop` or `length`: nothing follows.
    finish: str | None = None
    # A dict of `prompt_tokens`, `completion_tokens`, `cached_tokens`, `reasoning_tokens`.
    usage: dict[str, int] | None = None


class TextModel(Model):
    """A prompt or a conversation in; pieces of text out."""

    method, argument = "GenerateText", "text"

    def __init__(self, name, function, is_chat, accepts, context_length, **options):
        card = cards.Card(name, "chat" if is_chat else "text", "text")
        card.json["context_length"] = context_length
        super().__init__(card, function, **options)
        self.is_chat, self.accepts = is_chat, (KEPT | HINTS | set(accepts)) - LACKING

    def check(self, message):
        """Refuses a body that the function does not keep."""
        body = _body(message)
        silent = {"response_format"} if body.get("response_format") == {"type": "text"} else set()
        if body.get("tool_choice") == "none":
            silent.add("tools")
        silent.update(name for name, value in body.items()
                      if value is None or value is False or value in ([], {}))
        if unknown := sorted(body.keys() - self.accepts - silent):
            raise Unimplemented(f"model `{self.name}` does not know `{unknown[0]}`",
                                param=unknown[0])
        for name, most in (("n", MAX_CHOICES), ("max_tokens", 1 << 32)):
            count = body.get(name)
            if count is not None and not (isinstance(count, int) and 1 <= count <= most):
                raise InvalidRequest(f"`{name}`: expected 1 to {most}, got {count!r}", param=name)
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise InvalidRequest("`stop`: expected texts", param="stop")
        self._argument(body)

    async def answer(self, message, request, queue_ns, send):
        request.body = body = _body(message)
        argument = self._argument(body)

        async def one(index):
            contexts.enter(dataclasses.replace(request, choice=index))
            await self._continue(argument, body, index, queue_ns, send)

        await each(body.get("n") or 1, one)

    def _argument(self, body):
        """Returns what the function gets: the messages of a chat or a prompt."""
        messages, prompt = body.get("messages"), body.get("prompt")
        if isinstance(messages, list):
            if not self.is_chat:
                raise InvalidRequest(f"model `{self.name}` continues prompts and takes no messages",
                                     param="messages")
            return messages
        if not isinstance(prompt, str):
            raise InvalidRequest(f"model `{self.name}` takes texts: expected `prompt` to be one",
                                 param="prompt")
        return [{"role": "user", "content": prompt}] if self.is_chat else prompt

    async def _continue(self, argument, body, index, queue_ns, send):
        text = Text(body.get("stop") or (), body.get("max_tokens"))
        async with contextlib.aclosing(self.runner.values(argument)) as values:
            async for value in values:
                delta = value if isinstance(value, Delta) else Delta(content=value)
                if not isinstance(delta.content, str):
                    kind = type(value).__name__
                    raise Internal(f"model `{self.name}`: expected a str or a `Delta`, got {kind}")
                output = text.take(delta)
                if text.finish is not None:
                    break
                if output.ByteSize():
                    output.index, output.queue_time_ns = index, queue_ns
                    await send(output)
            else:
                output = text.end()
        output.index, output.queue_time_ns, output.finish = index, queue_ns, text.finish
        await send(output)


def _body(message):
    form = message.WhichOneof("body")
    try:
        body = json.loads(getattr(message, form)) if form else None
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest("`body`: expected a JSON object")
    return body


class Text:
    """One choice: finds the texts that end it, and counts its pieces, each of which is a token to
    whoever limits them."""

    def __init__(self, stops, max_pieces):
        stops = [stops] if isinstance(stops, str) else stops
        self._stops = [stop for stop in stops if stop]
        self._left = max_pieces
        # What may be the beginning of a stop.
        self._held = ""
        self._calls = 0
        self.finish = None

    def take(self, delta):
        """Returns what can be told of a piece."""
        output = wire.worker.TextDelta(reasoning=delta.reasoning)
        text = self._held + delta.content
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, output.stop = min(found)
            output.content, self._held, self.finish = text[:at], "", STOP
        else:
            keep = self._beginning(text)
            output.content, self._held = text[:len(text) - keep], text[len(text) - keep:]
            self._add_calls(output, delta.tool_calls)
        if delta.usage is not None:
            output.usage.SetInParent()
            for name, count in delta.usage.items():
                setattr(output.usage, name, count)
        if self._left is not None and (delta.content or delta.reasoning):
            self._left -= 1
        if self.finish is None and (delta.finish is not None or self._left == 0):
            self.finish = FINISHES[delta.finish] or LENGTH
            output.content += self._held
        return output

    def end(self):
        """Returns what was held back, at the end of the function's text."""
        self.finish = STOP
        return wire.worker.TextDelta(content=self._held)

    def _beginning(self, text):
        """Returns how many characters at the end may begin a stop."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0

    def _add_calls(self, output, calls):
        for call in calls:
            if call.get("name"):
                self._calls += 1
            index = call.get("index", self._calls - 1)
            output.tool_calls.add(index=max(index, 0), id=call.get("id", ""),
                                  name=call.get("name", ""), arguments=call.get("arguments", ""))


class TextEmbeddingModel(Model):
    """A text in, one vector out."""

    method, argument = "EmbedText", "text"

    def __init__(self, name, function, context_length, **options):
        card = cards.Card(name, "embedding", "text")
        card.json["context_length"] = context_length
        super().__init__(card, function, **options)

    async def answer(self, message, request, queue_ns, send):
        async with contextlib.aclosing(self.runner.values(message.text)) as values:
            async for value in values:
                await send(wire.worker.TextEmbedding(values=[float(number) for number in value]))
                return
