"""Processes die, hang and are cut off under load, and no client sees it.

Each test prints what it counted. `STATOR_CHAOS=nightly` makes the long ones long.
"""

import concurrent.futures
import contextlib
import itertools
import json
import random
import signal
import socket
import subprocess
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from chaos import PACED, Streams, Sums, add, completion, either, frames, posted, total
from conftest import Server, halt, running
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from programs import Etcd, Nats, planes, program
from real_models import real_model
from test_cluster import client_of, frontend, is_ready, joined, told
from wire import Stream, tensor, text_request
from ways import DIRECT, TELLING, came, ways

# What is said of a direct way is shown on each.
on_each_way = pytest.mark.parametrize("way", DIRECT)


@pytest.fixture
def tell(capsys):
    """Prints past pytest's capture, so that the counts are in the output of a run."""
    def say(text):
        with capsys.disabled():
            print(f"\n    chaos: {text}")
    return say


def worker(discovery, *arguments, models=PACED):
    return running("--discovery", discovery, *models, *arguments, role="worker")


def start(discovery, *arguments):
    return Server("--discovery", discovery, *PACED, *arguments, role="worker")


@contextlib.contextmanager
def several(discovery, count, *arguments):
    """Runs workers in a list; whoever is in it at the end is stopped."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        workers = list(pool.map(lambda _: start(discovery, *arguments), range(count)))
    try:
        yield workers
    finally:
        for one in workers:
            one.stop()


def wait_for(front, count):
    eventually(f"{count} workers joined", lambda: joined(front) >= count)
    with client_of(front) as client:
        for model in ("paced", "simple"):
            eventually(f"`{model}` is ready", lambda: is_ready(client, model))


def are_called(workers, way):
    eventually(f"all are called by {way}", lambda: all(ways(one)[way] for one in workers))


def is_at_rest(front, workers):
    """Returns whether nothing is under way anywhere, by what the processes count themselves."""
    at_front = ["stator_requests_in_flight", "stator_worker_calls", "stator_queue_depth_requests",
                "stator_running_sequences", "stator_kv_blocks_used"]
    at_worker = ["stator_open_calls", *at_front[2:]]
    asked = [(front, at_front), *((one, at_worker) for one in workers)]
    return all(total(server, name) == 0 for server, names in asked for name in names)


@on_each_way
def test_every_text_is_as_undisturbed_though_workers_are_killed(tmp_path, tell, way):
    discovery, kills, by = f"file://{tmp_path}", either(100, 1000), [*DIRECT[way], *TELLING]
    chance = random.Random(1)
    flags = ["--migration-limit", "20", "--max-attempts", "10"]
    with frontend(discovery, *flags, *by) as front, several(discovery, 4, *by) as workers:
        wait_for(front, 4)
        with Streams(front) as streams, Sums(front) as sums:
            for _ in range(kills):
                victim = chance.randrange(len(workers))
                time.sleep(chance.uniform(0, 0.1))
                workers[victim].stop()
                workers[victim] = start(discovery, *by)
        migrated = total(front, "stator_migrations_total")
        tell(f"{kills} kills, {way}: {streams}; {sums}; {migrated:.0f} migrations")
        streams.check()
        sums.check()
        assert migrated > kills / 4, "the kills hit texts"
        are_called(workers, way)
        eventually("nothing is left over", lambda: is_at_rest(front, workers))


def test_a_real_model_says_the_same_though_workers_are_killed(tmp_path, tell):
    discovery, kills = f"file://{tmp_path}", either(10, 100)
    model = [f"smollm={real_model()}", "--kv-cache-mib", "64", "--threads", "1"]
    run = lambda: Server("--discovery", discovery, *model, role="worker")
    with frontend(discovery, "--migration-limit", "20", "--max-attempts", "10") as front:
        workers = [run(), run()]
        try:
            with client_of(front) as client:
                eventually("the model is ready", lambda: is_ready(client, "smollm"))
            with Streams(front, 3, 24, "smollm") as streams:
                for kill in range(kills):
                    time.sleep(random.Random(kill).uniform(0.1, 0.6))
                    workers[kill % 2].stop()
                    workers[kill % 2] = run()
            migrated = total(front, "stator_migrations_total")
            tell(f"{kills} kills, a real model: {streams}; {migrated:.0f} migrations")
            streams.check()
            assert migrated > 0
        finally:
            for one in workers:
                one.stop()


def outage(folder, how, seconds):
    """Takes etcd and NATS from a fleet under load, and gives them back; returns what was counted."""
    for name in ("etcd", "nats"):
        (folder / name).mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(program(Etcd, folder / "etcd"))
        nats = stack.enter_context(program(Nats, folder / "nats"))
        discovery, on = f"etcd://127.0.0.1:{etcd.port}", planes(nats, "nats", "nats")
        front = stack.enter_context(frontend(discovery, *on, *TELLING))
        workers = stack.enter_context(several(discovery, 2, *on, *TELLING))
        wait_for(front, 2)
        with Streams(front, threads=3) as streams, Sums(front) as sums:
            streams.goes_on()
            sums.goes_on()
            for one in workers:
                came(one, "nats", front)
            for one in (etcd, nats):
                halt(one.process) if how == "hang" else one.stop()
            before = (streams.done, sums.done)
            for _ in range(seconds // 10):
                time.sleep(10)
                streams.goes_on()
                sums.goes_on()
            away = (streams.done - before[0], sums.done - before[1])
            for one in (etcd, nats):
                one.process.send_signal(signal.SIGCONT) if how == "hang" else one.start()
            # Who is called over gRPC stays so; one that comes when NATS is there again is not.
            eventually("the frontend is at NATS again",
                       lambda: joined(front, "nats answers: it is used again"))
            with worker(discovery, *on, *TELLING) as late:
                workers.append(late)
                eventually("a worker of later joined", lambda: joined(front) >= 3)
                heard, prompts = total(front, "stator_kv_events_total"), itertools.count()

                def are_heard():
                    prompt = f"{next(prompts)}. a prompt that nobody has asked before " * 9
                    completion(front.http, prompt)
                    return total(front, "stator_kv_events_total") > heard

                eventually("events are heard again", are_heard)
                eventually("the late worker is called", lambda: total(late, "stator_open_calls") > 0)
                came(late, "nats", front)
                workers.remove(late)
        streams.check()
        sums.check()
        assert all(process.is_running() for process in (front, *workers))
        eventually("nothing is left over", lambda: is_at_rest(front, workers))
        return f"etcd and NATS {how} for {seconds} s: {streams}; {sums}; while they were away {away}"


def test_nobody_sees_that_etcd_and_nats_are_away(tmp_path, tell):
    seconds = either(60, 600)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outages = [pool.submit(outage, tmp_path / how, how, seconds) for how in ("hang", "die")]
        for one in outages:
            tell(one.result())


def test_nats_that_hangs_again_and_again_costs_no_request(tmp_path, tell):
    discovery, outages = f"file://{tmp_path}/fleet", 4
    with program(Nats, tmp_path) as nats:
        on = [*planes(nats, "nats", "nats"), *TELLING]
        with frontend(discovery, *on) as front, several(discovery, 2, *on) as workers:
            wait_for(front, 2)
            with Streams(front, threads=3) as streams, Sums(front) as sums:
                for one in workers:
                    came(one, "nats", front)
                for outage in range(outages):
                    halt(nats.process)
                    # From then on nobody greets over NATS until it answers.
                    eventually("NATS is left", lambda: joined(front, "nats does not answer"))
                    streams.goes_on()
                    sums.goes_on()
                    nats.process.send_signal(signal.SIGCONT)
                    if outage == 0:
                        eventually("NATS is used again", lambda: joined(front, "it is used again"))
                    streams.goes_on()
                    sums.goes_on()
            lost, left = joined(front, "lost a worker"), joined(front, "worker is not called")
            tell(f"NATS hung {outages} times: {streams}; {sums}; {lost} workers lost, {left} not called")
            streams.check()
            sums.check()
            assert lost == 0, "what carries calls is lost, and no worker"


@pytest.fixture
def island(tell):
    """A network of its own, joined to this one by a pair of interfaces."""
    number = random.randrange(10000)
    name, net = f"stator{number}", f"10.213.{number % 256}"
    here, there = f"{net}.1/30", f"{net}.2"
    run = lambda *words: subprocess.run(words, check=True, capture_output=True, text=True)
    try:
        run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        why = f"network namespaces are not permitted here: {getattr(error, 'stderr', error)}"
        tell(why)
        pytest.skip(why)
    try:
        run("ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}n")
        run("ip", "link", "set", f"{name}n", "netns", name)
        run("ip", "addr", "add", here, "dev", f"{name}h")
        run("ip", "link", "set", f"{name}h", "up")
        inside = ["ip", "netns", "exec", name]
        run(*inside, "ip", "addr", "add", f"{there}/30", "dev", f"{name}n")
        run(*inside, "ip", "link", "set", f"{name}n", "up")
        run(*inside, "ip", "link", "set", "lo", "up")

        def cut(is_cut):
            # Nothing is told to either end: packets are gone.
            run(*inside, "ip", "link", "set", f"{name}n", "down" if is_cut else "up")

        yield inside, there, cut
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_a_worker_that_is_cut_off_is_gone_on_without(tmp_path, tell, island):
    discovery, (inside, there, cut) = f"file://{tmp_path}", island
    with frontend(discovery) as front, several(discovery, 1), \
            running("--discovery", discovery, *PACED, "--worker-address", f"{there}:0",
                    role="worker", prefix=inside) as far:
        wait_for(front, 2)
        with Streams(front) as streams, Sums(front) as sums:
            streams.goes_on()
            cut(True)
            eventually("it is not called", lambda: told(front, far, "worker is not called"))
            streams.goes_on()
            sums.goes_on()
            cut(False)
            eventually("it is called again", lambda: told(front, far, "worker is called again"))
            streams.goes_on()
        tell(f"a worker cut off and joined again: {streams}; {sums}")
        streams.check()
        sums.check()
        assert far.is_running()


@on_each_way
def test_a_slow_reader_holds_nobody_up_and_gets_all(tmp_path, tell, way):
    discovery, tokens, readers = f"file://{tmp_path}", 30_000, 3
    models = ["--no-default-model", "--builtin", "fast=mock,context_length=40000", "--builtin", "simple=add_sub"]
    with frontend(discovery, *DIRECT[way]) as front, client_of(front) as client, \
            worker(discovery, *DIRECT[way], *TELLING, models=models) as only:
        for model in ("fast", "simple"):
            eventually(f"`{model}` is ready", lambda: is_ready(client, model))
        expected = completion(front.http, "slowly", tokens, "fast")
        body = {"model": "fast", "prompt": "slowly", "max_tokens": tokens, "temperature": 0,
                "stream": True}
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(posted(front.http, body, window=4096))
                    for _ in range(readers)]
            streams = [frames(one) for one in slow]
            texts = [next(stream)["choices"][0]["text"] for stream in streams]
            took = []
            for _ in range(either(50, 500)):
                started = time.monotonic()
                assert completion(front.http, "quick", 10, "fast")[2] == 10
                add(client)
                took.append(time.monotonic() - started)
            assert total(front, "stator_requests_in_flight") == readers, "who reads slowly still waits"
            for place, stream in enumerate(streams):
                rest = [frame["choices"][0]["text"] for frame in stream if frame["choices"]]
                texts[place] += "".join(rest)
        took.sort()
        right = sum(text == expected[0] for text in texts)
        tell(f"{readers} slow readers of {tokens} tokens, {way}, {right} got all; others meanwhile: "
             f"{len(took)} answers, median {took[len(took) // 2] * 1e3:.0f} ms, "
             f"longest {took[-1] * 1e3:.0f} ms")
        assert right == readers
        are_called([only], way)


@on_each_way
def test_a_worker_that_hangs_is_gone_on_without(tmp_path, tell, way):
    discovery, by = f"file://{tmp_path}", [*DIRECT[way], *TELLING]
    with frontend(discovery, *by) as front, several(discovery, 2, *by) as workers:
        wait_for(front, 2)
        with Streams(front) as streams:
            streams.goes_on()
            halt(workers[0].process)
            eventually("it is not called", lambda: told(front, workers[0], "worker is not called"))
            streams.goes_on()
            workers[0].process.send_signal(signal.SIGCONT)
            eventually("it is called again",
                       lambda: told(front, workers[0], "worker is called again"))
            streams.goes_on()
        tell(f"a worker that hangs, {way}: {streams}")
        streams.check()
        are_called(workers, way)
        eventually("nothing is left over", lambda: is_at_rest(front, workers))


def test_a_request_to_a_fleet_that_hangs_ends_at_its_deadline(tmp_path, tell):
    discovery = f"file://{tmp_path}"
    # Without a deadline a request would wait for a worker that answers.
    with frontend(discovery, "--worker-wait-ms", str(NEVER_MS)) as front, \
            worker(discovery) as only:
        wait_for(front, 1)
        halt(only.process)
        took, codes = [], []
        with grpc.insecure_channel(front.address) as channel, client_of(front) as client:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for ask in [lambda: add(client, timeout=1), lambda: add(client, timeout=1),
                        lambda: stub.ModelInfer(text_request("paced", "x", max_tokens=5),
                                                timeout=1)]:
                started = time.monotonic()
                with pytest.raises((grpc.RpcError, InferenceServerException)) as error:
                    ask()
                took.append(time.monotonic() - started)
                codes.append(str(getattr(error.value, "code", error.value.status if hasattr(
                    error.value, "status") else str)()))
        only.process.send_signal(signal.SIGCONT)
        tell(f"a deadline of 1 s at a worker that hangs: {codes}, longest {max(took):.2f} s")
        assert set(codes) == {"StatusCode.DEADLINE_EXCEEDED"}
        assert max(took) < PATIENCE_SECONDS
        eventually("nothing is left over", lambda: is_at_rest(front, [only]))


def cancel_some(front, seed, count):
    """Cancels calls at random moments: over gRPC and over HTTP, before and after a first answer.
    Returns how many ended by themselves."""
    chance, ended, started = random.Random(seed), 0, time.monotonic()
    completion(front.http, f"first {seed}", 1)
    # On a slow machine a request takes longer to come to where it can be cancelled.
    first = time.monotonic() - started
    with grpc.insecure_channel(front.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for number in range(count):
            tokens = chance.choice([1, 30, 300])
            wait = chance.uniform(0, chance.choice([0, 0.25, 2.5, 5])) * first
            match number % 4:
                case 0:
                    stream = Stream(stub)
                    stream.send(text_request("paced", f"cancel {number}", max_tokens=tokens,
                                             extra=[tensor("stream", "BOOL", [1])], raw=[b"\1"]))
                    time.sleep(wait)
                    stream.cancel()
                case 1:
                    call = stub.ModelInfer.future(
                        text_request("paced", f"cancel {number}", max_tokens=tokens))
                    time.sleep(wait)
                    ended += not call.cancel()
                case _:
                    body = {"model": "paced", "prompt": f"cancel {number}", "stream": number % 4 == 2,
                            "max_tokens": tokens, "temperature": 0}
                    ended += cut_off(front.http, body, wait, chance)
    return ended


def cancel_all(front, count, threads):
    """Cancels calls from several threads at once; returns how many ended by themselves."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        share = count // threads
        return sum(pool.map(lambda seed: cancel_some(front, seed, share), range(threads)))


def cut_off(address, body, wait, chance):
    """Sends a request over HTTP and closes the connection, by FIN or by RST."""
    text = json.dumps(body).encode()
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, port), PATIENCE_SECONDS) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: "
                           b"application/json\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
        time.sleep(wait)
        if chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return 0


@on_each_way
def test_cancelled_requests_leave_nothing_behind(tmp_path, tell, way):
    discovery, cancels, threads = f"file://{tmp_path}", either(5_000, 50_000), 8
    by = [*DIRECT[way], *TELLING]
    with frontend(discovery, *by) as front, several(discovery, 2, *by) as workers:
        wait_for(front, 2)
        completion(front.http, "warm", 5)
        are_called(workers, way)
        # What such requests begin once and keep, such as connections, is there before any is counted.
        cancel_all(front, 8 * threads, threads)
        eventually("nothing is under way", lambda: is_at_rest(front, workers))
        left = lambda: [total(one, "stator_tasks") for one in (front, *workers)]
        tasks = []

        def is_settled():
            before, tasks[:] = list(tasks), left()
            time.sleep(1)
            return tasks == before

        eventually("nothing else begins", is_settled)
        started = time.monotonic()
        ended = cancel_all(front, cancels, threads)
        took = time.monotonic() - started
        eventually("nothing is left over", lambda: is_at_rest(front, workers))
        eventually("no task is left over", lambda: all(
            now <= before for now, before in zip(left(), tasks)))
        codes = {code: total(front, "stator_requests_total", f'code="{code}"')
                 for code in ("OK", "CANCELLED")}
        computed = sum(total(one, "stator_engine_decode_tokens_total") for one in workers)
        tell(f"{cancels} cancels, {way}, in {took:.0f} s, {ended} of calls that had ended; the frontend "
             f"counts {codes}, the workers {computed:.0f} tokens; left over: 0 requests, 0 calls, 0 sequences, 0 KV blocks, tasks {tasks} -> {left()}")
        assert codes["CANCELLED"] > cancels / 4 and computed > cancels / 10
        assert completion(front.http, "and on", 5)[2] == 5
        are_called(workers, way)
