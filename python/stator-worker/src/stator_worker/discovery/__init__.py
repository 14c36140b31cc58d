"""Where workers register: a folder of this machine, etcd, or nowhere.

A store may fail at any time: the registration is then taken again once it is back, and serving
goes on meanwhile.
"""

import asyncio
import logging
import os
import pathlib
import random

log = logging.getLogger("stator_worker")

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
REVOKE_SECONDS = 2.0


def open_store(url):
    """Makes the store of a URL; none: the folder that `stator` takes by default."""
    if url is None:
        state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local/state"
        url = f"file://{pathlib.Path(state).absolute()}/stator/discovery"
    scheme, _, rest = url.partition("://")
    if scheme == "file" and rest.startswith("/"):
        from .file import Folder
        return Folder(pathlib.Path(rest))
    if scheme == "etcd" and rest.strip(","):
        from .etcd import Etcd
        return Etcd([endpoint for endpoint in rest.split(",") if endpoint])
    if scheme == "static" and not rest:
        return Nowhere()
    raise ValueError("discovery: expected file:///DIR, etcd://HOST:PORT[,HOST:PORT] or static://, "
                     f"got `{url}`")


class Nowhere:
    """No store: frontends know the worker's address and ask it what it is."""

    async def hold(self, read, held):
        held.set()
        await asyncio.Event().wait()

    async def forget(self):
        pass


class Registration:
    """Keeps an instance registered; `read` gives its record as it is now."""

    def __init__(self, store, read):
        self._store, self._read = store, read
        self.held = asyncio.Event()
        self._task = asyncio.create_task(self._keep())

    async def _keep(self):
        failures = 0
        while True:
            try:
                await self._store.hold(self._read, self.held)
            except Exception as error:  # whatever a store says, it is tried again
                if self.held.is_set() or not failures:
                    log.warning("cannot register, trying again: %s", error)
                failures = 1 if self.held.is_set() else failures + 1
                self.held.clear()
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures, 10))
            await asyncio.sleep(wait * random.uniform(0.5, 1))

    async def end(self):
        """Removes the registration, if the store lets it in time."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            await asyncio.wait_for(self._store.forget(), REVOKE_SECONDS)
        except Exception as error:
            log.warning("the registration is still there: %s", error or type(error).__name__)
