"""What carries calls to a worker, by what the worker's log says of each connection to it."""

import collections
import json

from patience import eventually

# Workers tell of each connection, and who calls them of what does not go over NATS as it should.
TELLING = ["--log-level",
           "info,cluster::nats=debug,cluster::events=debug,cluster::request::server=debug"]

# Where nobody listens: a worker that is registered there is called over NATS or not at all.
NOWHERE = ["--advertise", "127.0.0.1:1"]

# The ways to a worker of this machine without NATS, and what both roles are told for them.
DIRECT = {"socket": [], "tcp": ["--socket-dir", ""]}


COME, REFUSED = "a frontend connected", "a connection is not taken in"


def way_of(event):
    """Returns the way of the connection that an event of the log is about."""
    peer = event.get("peer", "nats")
    return {"nats": "nats", "this machine": "socket"}.get(peer, "tcp")


def ways(worker):
    """Returns how many connections a worker took in by each way."""
    told = [line for line in list(worker.log) if COME in line or REFUSED in line]
    events = [json.loads(line) for line in told]
    found = collections.Counter(way_of(event) for event in events)
    # Who only looks whether somebody listens, as a worker that starts does at all sockets.
    found.subtract(2 * [way_of(event) for event in events if event["message"] == REFUSED])
    return +found


def late(worker, caller):
    """Counts a caller's connections to a worker that took another way since NATS took too long: to
    answer it, or to be there when one of both was started."""
    parts = ("the other way is taken to a worker", f'"{worker.address}"')
    told = [line for line in list(caller.log) if all(part in line for part in parts)]
    reasons = ["no answer over nats"]
    if any("nats is not there yet" in line for line in [*worker.log, *caller.log]):
        reasons += ["nats cannot be reached", "no responders at nats"]
    return sum(any(reason in line for reason in reasons) for line in told)


def came(worker, way, *callers):
    """Waits until a worker is called, by a way and by no other. A machine that stands still for a
    second has NATS answer too late, which does not count where callers say so: who can be called
    over NATS alone shows that it answers at all."""
    def is_so():
        found = ways(worker)
        others = found.total() - found[way]
        # A caller has two connections at first: of tokens and of tensors.
        return found and others <= sum(min(2, late(worker, caller)) for caller in callers)

    try:
        eventually("it is called", is_so)
    except AssertionError as error:
        raise AssertionError(f"called by {ways(worker)}, expected {way}") from error
