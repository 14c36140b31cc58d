"""Offers Python functions as models of a Stator fleet.

    import stator_worker as stator

    worker = stator.Worker()

    @worker.tensor("double", inputs={"IN": ("FP32", [-1])}, outputs={"OUT": ("FP32", [-1])})
    def double(IN):
        return IN * 2

    worker.run()
"""

from .errors import AlreadyExists, Cancelled, DeadlineExceeded, Error, Internal, InvalidRequest, \
    NotFound, Overloaded, PermissionDenied, Unauthenticated, Unavailable, Unimplemented
from .context import Request, Sequence, request
from .models import Token
from .texts import Delta
from .worker import Worker

__all__ = [
    "AlreadyExists", "Cancelled", "DeadlineExceeded", "Delta", "Error", "Internal",
    "InvalidRequest", "NotFound", "Overloaded", "PermissionDenied", "Request", "Sequence", "Token",
    "Unauthenticated", "Unavailable", "Unimplemented", "Worker", "request",
]
