"""Versions in a fleet: they keep their numbers, and a frontend serves all that a worker has."""

import shutil

from patience import eventually
from test_cluster import frontend, worker
from test_repository import NOT_FOUND, identity, infer
from wire import Client, call, denied, write_model


def test_a_frontend_serves_the_versions_of_a_worker_under_their_numbers(tmp_path):
    discovery, root = f"file://{tmp_path / 'fleet'}", tmp_path / "models"
    write_model(root, "m", identity("m", "version_policy: { all { } }\n"), versions=(1, 3))
    write_model(root, "one", identity("one"), versions=(3,))
    flags = ["--model-repository", str(root), "--model-control-mode", "poll", "--repository-poll-secs", "1"]
    with worker(discovery, models=flags), frontend(discovery) as front, Client(front) as client:
        versions = lambda name="m": sorted(client.get_model_metadata(name).versions)
        serves = lambda name, *numbers: all(client.is_model_ready(name, number) for number in numbers)
        eventually("all are there", lambda: serves("m", "1", "3") and serves("one", "3"))
        assert versions() == ["1", "3"] and versions("one") == ["3"]
        assert infer(client, "m") == "3" and infer(client, "m", version="1") == "1"
        assert infer(client, "one") == "3" and not client.is_model_ready("one", "1")
        denied(lambda: infer(client, "one", version="1"), NOT_FOUND, "version 1 is not found")
        assert call(front, "/v2/models/one/versions/3").json()["versions"] == ["3"]
        assert call(front, "/v2/models/one/versions/1").status == 404
        listed = [(one.name, one.version, one.state) for one in client.get_model_repository_index().models]
        assert listed == [("m", "1", "READY"), ("m", "3", "READY"), ("one", "3", "READY")]
        write_model(root, "m", identity("m", "version_policy: { all { } }\n"), versions=(4,))
        eventually("the new one is the latest", lambda: versions() == ["1", "3", "4"] and infer(client, "m") == "4")
        assert infer(client, "m", version="3") == "3"
        shutil.rmtree(root / "m" / "4")
        shutil.rmtree(root / "m" / "1")
        eventually("what is gone is gone", lambda: versions() == ["3"])
        assert infer(client, "m") == "3"
