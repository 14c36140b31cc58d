"""Runs users' functions: of any of the four kinds, a bounded number at a time.

Coroutines and asynchronous generators run on the event loop; plain functions and generators on
threads of their model, so that a slow one stops nobody else.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import time

from .errors import Overloaded

_END = object()


class Runner:
    """A model's function with its places: `concurrency` of them, and `max_waiting` requests that
    wait for one; more are refused."""

    def __init__(self, function, concurrency, max_waiting):
        self.function = function
        self.kind = _kind(function)
        is_plain = self.kind in ("function", "generator")
        self.concurrency = concurrency or (1 if is_plain else 256)
        self.max_waiting = max_waiting
        self.waiting = self.running = 0
        # Threads that are in the function, wanted or not.
        self.busy = 0
        self._places = asyncio.Semaphore(self.concurrency)
        self._threads = None
        if is_plain:
            self._threads = concurrent.futures.ThreadPoolExecutor(self.concurrency, "stator-model")

    def check_call(self, model, *arguments, **named):
        """Checks that the function can be called so; else its first request would find out."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            # Some of those that are written in C do not tell.
            return
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            given = ", ".join([*arguments, *(f"{name}=..." for name in named)])
            raise TypeError(f"model `{model}`: its function is called with ({given}) and takes "
                            f"{signature}: {error}") from None

    @property
    def is_stream(self):
        """Whether the function yields any number of values."""
        return self.kind in ("generator", "async generator")

    def check_room(self):
        """Refuses a request that there is no room for."""
        if self._places.locked() and self.waiting >= self.max_waiting:
            raise Overloaded(f"{self.waiting} requests wait, the most that may")

    @contextlib.asynccontextmanager
    async def place(self):
        """Waits for a place; gives the nanoseconds that this took."""
        began = time.monotonic_ns()
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield time.monotonic_ns() - began
        finally:
            self.running -= 1
            self._places.release()

    async def values(self, *arguments, **named):
        """Calls the function and yields what it gives: one value, or those of a generator. When
        this ends early, so does the generator."""
        call = functools.partial(self.function, *arguments, **named)
        if self.kind == "async generator":
            async with contextlib.aclosing(call()) as values:
                async for value in values:
                    yield value
        elif self.kind == "coroutine":
            yield await call()
        elif self.kind == "function":
            yield await self._thread(call)
        else:
            values = await self._thread(call)
            try:
                while (value := await self._thread(next, values, _END)) is not _END:
                    yield value
            finally:
                # Behind the step that may be under way, without waiting for it.
                self._threads.submit(values.close)

    async def _thread(self, function, *arguments):
        context, loop = contextvars.copy_context(), asyncio.get_running_loop()
        future = self._threads.submit(context.run, function, *arguments)
        self.busy += 1
        future.add_done_callback(lambda _: self._left(loop))
        return await asyncio.wrap_future(future)

    def _left(self, loop):
        def count():
            self.busy -= 1

        # The loop may have ended before its threads.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(count)

    def close(self):
        """Ends the threads once they have nothing to do."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _kind(function):
    target = function
    while isinstance(target, functools.partial):
        target = target.func
    if not (inspect.isroutine(target) or inspect.isclass(target)):
        target = type(target).__call__
    if inspect.isasyncgenfunction(target):
        return "async generator"
    if inspect.iscoroutinefunction(target):
        return "coroutine"
    return "generator" if inspect.isgeneratorfunction(target) else "function"
