"""Why a call fails, in the words of the protocol.

A function raises one of these to say whose fault it is; anything else that it raises is the
worker's own fault, and the client hears nothing of its text.
"""

import grpc

from . import wire

MAX_MESSAGE_BYTES = 4096
MAX_WORD_BYTES = 256
# Of the status' own text, which only those read who do not know failures.
MAX_TEXT_BYTES = 512


class Error(Exception):
    """What a client is told: a message, and maybe which field is wrong, a word for programs and
    after how many seconds to try again."""

    kind = "INTERNAL"
    status = grpc.StatusCode.INTERNAL

    def __init__(self, message, *, param=None, code=None, retry_after=None):
        super().__init__(message)
        self.message = str(message)
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def trailers(self):
        """Returns the failure as trailing metadata."""
        failure = wire.worker.Failure(
            kind=wire.worker.number("Failure.Kind", f"KIND_{self.kind}"),
            message=_cut(self.message, MAX_MESSAGE_BYTES))
        if self.param is not None:
            failure.param = _cut(self.param, MAX_WORD_BYTES)
        if self.code is not None:
            failure.code = _cut(self.code, MAX_WORD_BYTES)
        if self.retry_after is not None:
            failure.retry_after_ns = max(0, int(self.retry_after * 1e9))
        return (("stator-failure-bin", failure.SerializeToString()),)

    def text(self):
        """Returns the text of the status."""
        return _cut(self.message, MAX_TEXT_BYTES)


def _cut(text, max_bytes):
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


class Internal(Error):
    """A fault of the worker."""


class InvalidRequest(Error):
    """The request can never succeed as it is."""

    kind, status = "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT


class Unauthenticated(Error):
    """The caller did not say who it is."""

    kind, status = "UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(Error):
    """The caller may not."""

    kind, status = "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED


class NotFound(Error):
    """There is no such model or thing."""

    kind, status = "NOT_FOUND", grpc.StatusCode.NOT_FOUND


class AlreadyExists(Error):
    """The name is taken."""

    kind, status = "ALREADY_EXISTS", grpc.StatusCode.ALREADY_EXISTS


class Overloaded(Error):
    """A queue or limit is full; another worker may have room."""

    kind, status = "OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(Error):
    """The worker is starting, draining or gone."""

    kind, status = "UNAVAILABLE", grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(Error):
    """Nobody waits any more."""

    kind, status = "DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(Error):
    """Nobody wants it any more."""

    kind, status = "CANCELLED", grpc.StatusCode.CANCELLED


class Unimplemented(Error):
    """It is known and not offered."""

    kind, status = "UNIMPLEMENTED", grpc.StatusCode.UNIMPLEMENTED
