"""Registers in etcd: a key on a lease, which is kept alive for as long as the process lives.

The key is `/stator/v1/instances/NAMESPACE/ID`. When etcd lost the lease, or was away for longer
than it lives, another one is taken. When somebody removed the key, or wrote over it, it is put
again.
"""

import asyncio
import json
import logging

import grpc

from .. import wire

log = logging.getLogger("stator_worker")

PREFIX = "/stator/v1/instances"
TTL_SECONDS = 10
CALL_SECONDS = 3


class Etcd:
    """A cluster of etcd by the addresses of its members."""

    def __init__(self, endpoints):
        self._endpoints = endpoints
        self._at = 0
        self._lease = self._key = None

    async def hold(self, read, held):
        """Registers at the next member and keeps the registration as `read` has it."""
        async with self._channel() as channel:
            written = None
            while True:
                instance, record = read()
                if self._lease is None:
                    grant = wire.etcd.LeaseGrantRequest(TTL=TTL_SECONDS)
                    self._lease = (await _call(channel, "Lease/LeaseGrant", grant)).ID
                    written = None
                if record != written:
                    namespace = json.loads(record)["namespace"]
                    self._key = f"{PREFIX}/{namespace}/{instance}".encode()
                    put = wire.etcd.PutRequest(key=self._key, value=record, lease=self._lease)
                    try:
                        await _call(channel, "KV/Put", put)
                    except grpc.aio.AioRpcError as error:
                        if error.code() == grpc.StatusCode.NOT_FOUND:
                            self._lease = None
                        raise
                    written = record
                    held.set()
                # A change of the record, such as draining, is told within this time.
                for _ in range(3):
                    await asyncio.sleep(TTL_SECONDS / 9)
                    if read()[1] != written:
                        break
                if not await self._keep_alive(channel):
                    self._lease = None
                elif await self._has_lost_key(channel):
                    log.warning("registering again: somebody removed the key or wrote over it")
                    written = None

    async def forget(self):
        """Removes the key and ends the lease."""
        if self._lease is None:
            return
        async with self._channel() as channel:
            if self._key is not None:
                delete = wire.etcd.DeleteRangeRequest(key=self._key)
                await _call(channel, "KV/DeleteRange", delete)
            revoke = wire.etcd.LeaseRevokeRequest(ID=self._lease)
            await _call(channel, "Lease/LeaseRevoke", revoke)
            self._lease = None

    async def _keep_alive(self, channel):
        """Returns whether the lease still lives."""
        path, reply = "/etcdserverpb.Lease/LeaseKeepAlive", wire.etcd.LeaseKeepAliveResponse
        ask = channel.stream_stream(path, request_serializer=lambda beat: beat.SerializeToString(),
                                    response_deserializer=reply.FromString)
        call = ask(timeout=CALL_SECONDS)
        await call.write(wire.etcd.LeaseKeepAliveRequest(ID=self._lease))
        answer = await call.read()
        call.cancel()
        if answer is grpc.aio.EOF:
            raise ConnectionError("etcd ended the stream")
        return answer.TTL > 0

    async def _has_lost_key(self, channel):
        """Returns whether the lease lives and the key hangs on it no more."""
        ask = wire.etcd.LeaseTimeToLiveRequest(ID=self._lease, keys=True)
        answer = await _call(channel, "Lease/LeaseTimeToLive", ask)
        # That a lease has ended is for the next beat to find.
        return answer.TTL > 0 and self._key not in answer.keys

    def _channel(self):
        endpoint = self._endpoints[self._at % len(self._endpoints)]
        # The next attempt is at the next member.
        self._at += 1
        return grpc.aio.insecure_channel(endpoint)


async def _call(channel, method, request):
    name = method.rpartition("/")[2]
    reply = getattr(wire.etcd, f"{name}Response")
    ask = channel.unary_unary(f"/etcdserverpb.{method}",
                              request_serializer=lambda message: message.SerializeToString(),
                              response_deserializer=reply.FromString)
    return await ask(request, timeout=CALL_SECONDS)
