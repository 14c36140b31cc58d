"""Versions in a fleet: they keep their numbers, and a frontend serves all that a worker has."""

import shutil

from patience import eventually
from test_cluster import frontend, joined, worker
from test_repository import NOT_FOUND, identity, infer
from tritonclient.utils import InferenceServerException
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


def test_a_version_that_two_workers_have_stays_when_one_leaves(tmp_path):
    discovery = f"file://{tmp_path / 'fleet'}"
    write_model(tmp_path / "one", "m", identity("m"), versions=(3,))
    write_model(tmp_path / "two", "m", identity("m", "version_policy: { all { } }\n"), versions=(3, 4))
    serving = lambda name: worker(discovery, models=["--model-repository", str(tmp_path / name)])
    with frontend(discovery, "--worker-wait-ms", "200") as front, Client(front) as client:
        made = lambda: sum("model ready" in line and "m/versions/3" in line for line in front.log)

        def answers(version=""):
            try:
                return infer(client, "m", version=version)
            except InferenceServerException:
                return None

        versions = lambda: sorted(client.get_model_metadata("m").versions)
        with serving("one") as one:
            eventually("the first one is served", lambda: answers() == "3")
            with serving("two") as two:
                eventually("the same version of the other one is there", lambda: made() == 1)
                assert answers() == "3" and versions() == ["3"], "the older worker has the name"
                two.terminate()
                eventually("it left", lambda: joined(front, "worker left") == 1)
            eventually("the first one answers", lambda: answers("3") == "3")
            with serving("two"):
                eventually("the other one is there again", lambda: made() == 2)
                one.terminate()
                eventually("it has the name", lambda: answers() == "4" and versions() == ["3", "4"])
                eventually("it has the older version", lambda: answers("3") == "3")
