"""Registers in a folder that the processes of one machine share.

A process has a folder in it with a file `lock`, which it holds locked for as long as it lives, and
a file for its instance. A reader that finds the lock free knows that the process has ended, however
that happened. Each content has a name of its own, so readers see an old or a new one, and each
whole.
"""

import asyncio
import fcntl
import os
import secrets
import shutil

# How often a process looks whether its files are still there.
CHECK_SECONDS = 1.0


class Folder:
    """This process's part of the folder."""

    def __init__(self, root):
        self._root = root
        self._home = self._lock = self._file = None
        self._generation = 0

    async def hold(self, read, held):
        """Registers and keeps the registration as `read` has it."""
        written = None
        while True:
            instance, record = read()
            if record != written or not await asyncio.to_thread(self._is_whole):
                await asyncio.to_thread(self._write, instance, record)
                written = record
                held.set()
            await asyncio.sleep(CHECK_SECONDS)

    async def forget(self):
        """Removes what this process registered."""
        await asyncio.to_thread(self._remove)

    def _is_whole(self):
        return self._file.exists() and (self._home / "lock").exists()

    def _write(self, instance, record):
        if self._home is None or not (self._home / "lock").exists():
            self._make_home()
        self._generation += 1
        draft = self._home / f".{instance}"
        path = self._home / f"{instance}-{self._generation:016x}.json"
        draft.write_bytes(record)
        draft.rename(path)
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._file = path

    def _make_home(self):
        """Makes this process's folder. It appears with its lock held, so that nobody finds it
        free."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = self._file = None
        self._root.mkdir(parents=True, exist_ok=True)
        name = secrets.token_hex(8)
        draft = self._root / f".{name}"
        draft.mkdir()
        self._lock = os.open(draft / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._home = self._root / name
        draft.rename(self._home)

    def _remove(self):
        if self._home is not None:
            if self._file is not None:
                self._file.unlink(missing_ok=True)
            shutil.rmtree(self._home, ignore_errors=True)
            os.close(self._lock)
            self._home = self._lock = self._file = None
