"""The manifests in `deploy/kubernetes` follow Kubernetes' schemas and fit the binary."""

import subprocess

import kubernetes_validate
import pytest
import yaml

from conftest import BINARY, ROOT

FOLDER = ROOT / "deploy/kubernetes"
VERSIONS = ["1.31", kubernetes_validate.latest_version()]
OBJECTS = [(path.name, thing) for path in sorted(FOLDER.glob("*.yaml"))
           for thing in yaml.safe_load_all(path.read_text())]
NAMES = [f"{file}: {thing['kind']} {thing['metadata']['name']}" for file, thing in OBJECTS]


def of_kind(kind):
    return {thing["metadata"]["name"]: thing for _, thing in OBJECTS if thing["kind"] == kind}


def pods():
    return {name: thing["spec"]["template"]["spec"] for name, thing in of_kind("Deployment").items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("thing", [thing for _, thing in OBJECTS], ids=NAMES)
def test_every_object_is_valid(thing, version):
    kubernetes_validate.validate(thing, version, strict=True)


def test_the_schemas_find_mistakes():
    wrong = {**OBJECTS[0][1], "metdata": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_names_lead_to_one_another():
    accounts, roles = of_kind("ServiceAccount"), of_kind("Role")
    assert {pod["serviceAccountName"] for pod in pods().values()} == set(accounts)
    for binding in of_kind("RoleBinding").values():
        assert binding["roleRef"]["name"] in roles
        assert all(subject["name"] in accounts for subject in binding["subjects"])
    for deployment in of_kind("Deployment").values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    service, frontend = of_kind("Service")["stator"], of_kind("Deployment")["stator-frontend"]
    template = frontend["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert all(port["port"] == ports[port["targetPort"]] for port in service["spec"]["ports"])


def test_the_binary_knows_the_flags_and_ends_in_time():
    for pod in pods().values():
        [container] = pod["containers"]
        role, *arguments = container["args"]
        known = subprocess.run([BINARY, role, "--help"], capture_output=True, text=True, check=True).stdout
        for flag in (argument.split("=")[0] for argument in arguments if argument.startswith("--")):
            assert f"{flag} " in known, f"{role}: {flag}"
        for variable in container.get("env", []):
            if variable["name"].startswith("STATOR_"):
                assert f"[env: {variable['name']}=" in known, variable["name"]
        hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] > hook + 30, "30 s is --shutdown-grace-ms"
