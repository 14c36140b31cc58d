"""Tells apart what a process takes and what the machine lets it wait.

As a program it sleeps for a millisecond again and again on one processor, and says from when to when it was let wait behind that.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time

SLEEP_SECONDS = 0.001
# What a wakeup may take on a machine that has nothing else to do is not told.
LATE_SECONDS = 0.001
MAX_PROCESSORS = 4


def watch(processor):
    os.sched_setaffinity(0, {processor})
    parent, slept = os.getppid(), time.time()
    while os.getppid() == parent:
        time.sleep(SLEEP_SECONDS)
        due, slept = slept + SLEEP_SECONDS, time.time()
        if slept - due > LATE_SECONDS:
            print(f"{due:.6f} {slept:.6f}", flush=True)


class LateWakeups:
    """What the processes of some processors have told."""

    def __init__(self):
        self.waits, processors = [], sorted(os.sched_getaffinity(0))[:MAX_PROCESSORS]
        self.processes = [
            subprocess.Popen([sys.executable, __file__, str(processor)], stdout=subprocess.PIPE, text=True)
            for processor in processors]
        self.readers = [threading.Thread(target=self._read, args=(process,), daemon=True) for process in self.processes]
        for reader in self.readers:
            reader.start()

    def _read(self, process):
        for line in process.stdout:
            begin, end = line.split()
            self.waits.append((float(begin), float(end)))

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        for reader in self.readers:
            reader.join()

    def within(self, begin, end):
        """Returns how many seconds of a time some process was let wait; each counts once."""
        waited, at = 0.0, begin
        for first, last in sorted(self.waits):
            first, last = max(first, at), min(last, end)
            if first < last:
                waited, at = waited + last - first, last
        return waited


@contextlib.contextmanager
def late_wakeups():
    watching = LateWakeups()
    try:
        yield watching
    finally:
        watching.stop()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
