"""What a function may ask about the request that it works on."""

import contextvars
import dataclasses
import threading
import time
from typing import Any

_CURRENT = contextvars.ContextVar("stator_request")


@dataclasses.dataclass
class Request:
    """A request beside its data."""

    # The model's name.
    model: str
    # The client's name for it; not unique, may be empty.
    id: str = ""
    # 0 is the default, then lower is more urgent.
    priority: int = 0
    # The caller's span, as the header `traceparent` has it; may be empty.
    trace_parent: str = ""
    # When nobody waits any more, by `time.monotonic()`; none: somebody always does.
    deadline: float | None = None
    # The request's parameters, of tensor models.
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    # The request's place in a sequence, of tensor models that have sequences.
    sequence: "Sequence | None" = None
    # Of token models: the messages `Sampling` and `StopConditions` of `worker.proto`.
    sampling: Any = None
    stop: Any = None
    # Of token models: how many alternatives a token's log-probability comes with; none: nothing.
    logprobs: int | None = None
    # Of token models that keep constraints: the message `Guided`.
    guided: Any = None
    # Of token models: which continuation it is, from 0; each has its own draws of a seed.
    choice: int = 0
    # Of token models: how many tokens at the end of the prompt are output of an earlier attempt.
    generated: int = 0
    # Of text models: the whole body, as the OpenAI API has it.
    body: dict[str, Any] = dataclasses.field(default_factory=dict)
    _cancelled: threading.Event = dataclasses.field(default_factory=threading.Event, repr=False)

    def is_cancelled(self):
        """Returns whether nobody wants the answer any more: plain functions, which cannot be
        interrupted, look at it between steps of long work."""
        return self._cancelled.is_set()

    def seconds_left(self):
        """Returns how long the caller still waits; none: for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclasses.dataclass
class Sequence:
    """A request's place in a sequence. What is put into `state` is there at the next request of
    the sequence, on whichever worker."""

    id: int | str
    is_first: bool
    is_last: bool
    # Arrays by name.
    state: dict[str, Any]


def request():
    """Returns the request that the calling function works on."""
    try:
        return _CURRENT.get()
    except LookupError:
        raise RuntimeError("there is no request: call it from a model's function") from None


def enter(current):
    """Makes a request the one of the calling task."""
    _CURRENT.set(current)
