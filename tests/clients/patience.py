"""How long a test waits for what has to come, on a machine that is slow and busy with other things."""

import time

# Only what hangs takes so long.
PATIENCE_SECONDS = 300
# An end that comes by itself comes later than any patience.
NEVER_MS = 10 * PATIENCE_SECONDS * 1000


def eventually(what, fact):
    """Waits until something is so, and returns it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := fact()):
        assert time.monotonic() < end, f"not in {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.01)
    return found
