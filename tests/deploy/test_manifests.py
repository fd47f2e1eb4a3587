"""The files of deploy/ start programs that exist with arguments they take, and say how to scale."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from command_lines import ROOT, check
from ray.serve.schema import ServeDeploySchema

from omni.serve.config import ServeConfig

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KUBERNETES = kubernetes_validate.latest_version()


@pytest.fixture(scope="module")
def compose() -> dict:
    text = (DEPLOY / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))  # every variable has a default


@pytest.fixture(scope="module")
def manifests() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "rayservice.yaml").read_text()))


@pytest.fixture(scope="module")
def rayservice(manifests: list[dict]) -> dict:
    (found,) = (each for each in manifests if each["kind"] == "RayService")
    return found["spec"]


def words(value: str | list[str]) -> list[str]:
    return shlex.split(value) if isinstance(value, str) else value


# --- container ------------------------------------------------------------------------------------------------------


def test_the_image_copies_what_exists():
    """Every source of a COPY is in the repository and not kept out of the build."""
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_image_starts_omni():
    """Entry point and default command make a command line that omni takes."""
    text = (DEPLOY / "Containerfile").read_text()
    entry, command = (json.loads(re.search(rf"^{name} (.*)$", text, re.MULTILINE)[1]) for name in ("ENTRYPOINT", "CMD"))
    check(entry + command)


def test_the_image_has_the_pinned_torch():
    """The layer that brings torch brings the version that every other file names."""
    files = ("setup.cfg", "constraints.txt", "Makefile", "deploy/Containerfile")
    assert len({re.search(r"torch==[\d.]+", (ROOT / name).read_text())[0] for name in files}) == 1


# --- compose --------------------------------------------------------------------------------------------------------


def test_compose_has_a_service_of_each_kind(compose: dict):
    """Controller, model worker, vocoder worker and page are services of their own."""
    assert set(compose["services"]) == {"controller", "model", "vocoder", "page"}


@pytest.mark.parametrize("service", ["controller", "model", "vocoder", "page"])
def test_compose_commands_are_accepted(compose: dict, service: str):
    """What each service runs passes the program's own argument parser."""
    settings = compose["services"][service]
    check(settings.get("entrypoint", ["omni"]) + words(settings["command"]))


def test_compose_secret_is_where_the_services_look(compose: dict):
    """Each service that names the token's file is given the secret."""
    for settings in compose["services"].values():
        if "/run/secrets/token" in " ".join(words(settings["command"])):
            assert settings["secrets"] == ["token"]


# --- systemd --------------------------------------------------------------------------------------------------------


def unit_command(unit: Path, instance: str) -> list[str]:
    """ExecStart with its instance, and with the variables of omni.env and the unit put in."""
    pairs = re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / "omni.env").read_text(), re.MULTILINE)
    variables = {"CREDENTIALS_DIRECTORY": "/run/credentials", **dict(pairs)}
    variables |= dict(re.findall(r"^Environment=(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
    line = re.search(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)[1].replace("%i", instance)
    return shlex.split(re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], line))


@pytest.mark.parametrize("instance", ["model", "vocoder"])
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_commands_are_accepted(unit: Path, instance: str):
    """ExecStart, with the settings of omni.env, passes the program's own argument parser."""
    check(unit_command(unit, instance))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_units_pass_systemds_own_check(tmp_path: Path):
    """systemd-analyze finds nothing to say about the units."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/omni/", f"{ROOT}/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if "omni" in line]
    assert (done.returncode, complaints) == (0, [])


# --- Kubernetes -----------------------------------------------------------------------------------------------------


def test_kubernetes_objects_are_valid(manifests: list[dict]):
    """Every object but KubeRay's own has the shape the Kubernetes API asks for, with no unknown field."""
    for each in manifests:
        if not each["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_ray_pods_are_valid(rayservice: dict):
    """The pods of head and groups would be accepted as pods."""
    cluster = rayservice["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_ray_version_is_the_pinned_one(rayservice: dict):
    """KubeRay is told the version of Ray that the image has."""
    assert f"ray=={rayservice['rayClusterConfig']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_configuration_is_one_the_workers_read(manifests: list[dict], tmp_path: Path):
    """The config map holds settings that exist, with values that pass their checks."""
    (config,) = (each["data"]["config.json"] for each in manifests if each["kind"] == "ConfigMap")
    (tmp_path / "config.json").write_text(config)
    assert ServeConfig.read(tmp_path / "config.json").model_name == "llama-omni"


def test_serve_deploys_what_the_controller_calls(rayservice: dict, tmp_path: Path):
    """Serve's own schema takes the config, and each application is built under the name the controller looks for."""
    from omni.serve.ray_cluster import DEPLOYMENTS

    config = ServeDeploySchema.model_validate(yaml.safe_load(rayservice["serveConfigV2"]))
    ServeConfig(model_name="m", model="/m", vocoder="/v").write(tmp_path / "config.json")
    assert {each.name for each in config.applications} == set(DEPLOYMENTS.values())
    for application in config.applications:
        module, function = application.import_path.split(":")
        built = getattr(importlib.import_module(module), function)({"config": str(tmp_path / "config.json")})
        assert [each.name for each in application.deployments] == [built._bound_deployment.name]


def test_every_role_has_pods_with_places(rayservice: dict):
    """A group of pods offers the resource that each kind of worker asks for."""
    groups = {group["groupName"]: group for group in rayservice["rayClusterConfig"]["workerGroupSpecs"]}
    for role in ("model", "vocoder"):
        resources = groups[role]["rayStartParams"]["resources"]
        assert json.loads(json.loads(resources)) == {role: 1}
        assert groups[role]["maxReplicas"] > 1


def test_pods_run_our_programs(manifests: list[dict], rayservice: dict):
    """Commands of ours in the pods are ones our programs take."""
    (controller,) = (g for g in rayservice["rayClusterConfig"]["workerGroupSpecs"] if g["groupName"] == "controller")
    (script,) = controller["template"]["spec"]["containers"][0]["args"]
    check(shlex.split(script.rpartition("exec ")[2]))
    (page,) = (each["spec"]["template"]["spec"]["containers"][0] for each in manifests if each["kind"] == "Deployment")
    check(page["command"] + page["args"])


# --- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compose.yaml", "rayservice.yaml", "systemd/omni-worker@.service"])
def test_says_how_to_scale_one_kind(name: str):
    """A comment tells how to have more workers of one kind."""
    comments = [line for line in (DEPLOY / name).read_text().splitlines() if line.lstrip().startswith("#")]
    assert any("scale" in line.lower() for line in comments)
