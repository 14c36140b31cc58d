"""A publisher of KV events as vLLM is one, and a watcher of what becomes of them."""

import struct
import threading
import time

import grpc
import msgspec
import zmq

from patience import PATIENCE_SECONDS


class Event(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None


class BlockRemoved(Event):
    block_hashes: list[bytes | int]
    medium: str | None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class Publisher:
    """Publishes batches, and repeats those that are asked for."""

    def __init__(self):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.repeater = self.context.socket(zmq.ROUTER)
        self.replay_port = self.repeater.bind_to_random_port("tcp://127.0.0.1")
        self.kept, self.number = [], 0
        threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self):
        while True:
            try:
                client, _, first = self.repeater.recv_multipart()
            except zmq.ZMQError:
                return
            for number, payload in self.kept:
                if number >= int.from_bytes(first, "big"):
                    self.repeater.send_multipart([client, b"", struct.pack(">Q", number), payload])
            self.repeater.send_multipart([client, b"", (-1).to_bytes(8, "big", signed=True), b""])

    def wait_for_subscriber(self):
        assert self.socket.poll(PATIENCE_SECONDS * 1000), "nobody subscribed"
        return self.socket.recv()

    def publish(self, *events, is_lost=False):
        payload = msgspec.msgpack.encode(Batch(ts=time.time(), events=list(events), data_parallel_rank=0))
        self.kept.append((self.number, payload))
        if not is_lost:
            self.socket.send_multipart([b"kv-events", struct.pack(">Q", self.number), payload])
        self.number += 1


class Watcher:
    """Watches a model's KV events at a worker, by messages read from the wire."""

    def __init__(self, address, model, pb):
        self.channel = grpc.insecure_channel(address)
        call = self.channel.unary_stream("/stator.worker.v1.Worker/Watch", lambda message: message.SerializeToString(),
                                         pb.WorkerEvent.FromString)
        self.events, self.stream = [], call(pb.WatchRequest(model=model, kv_events=True))
        # The worker has accepted, and tells what comes from then on.
        self.stream.initial_metadata()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for event in self.stream:
                self.events.append(event)
        except grpc.RpcError:
            pass
