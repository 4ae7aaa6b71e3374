"""The Dockerfile, the Compose file and the manifests agree with the service: settings, paths, no secret."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]  # the stubs are not worth a dependency
from flask import Flask

from authsvc.api.health import blp as health
from authsvc.settings import Settings
from authsvc.settings.sections import VARIABLES, all_names
from tests.unit.settings_env import PEPPER, TOKEN_SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
YAML_FILES = [ROOT / "compose.yaml", *sorted(K8S.glob("*.yaml"))]
COMMENTED = re.compile(r"^  (?:# )?(?P<name>[A-Z][A-Z0-9_]+): (?P<value>.+)$", re.MULTILINE)
SECRETS = {
    "DATABASE_URL_FILE": "postgresql://authsvc:db-Pa55word@postgres:5432/authsvc",
    "REDIS_PASSWORD_FILE": "redis-Pa55word",
    "TOKEN_SECRET_FILE": TOKEN_SECRET,
    "PASSWORD_PEPPER_FILE": PEPPER,
}


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifest(name: str) -> dict[str, Any]:
    """Return the first document of a manifest."""
    return documents(K8S / f"{name}.yaml")[0]


def pod() -> dict[str, Any]:
    """Return the spec of the service's pods."""
    spec: dict[str, Any] = manifest("deployment")["spec"]["template"]["spec"]
    return spec


def containers() -> list[dict[str, Any]]:
    """Return the containers of the service's pods, the one that upgrades the database included."""
    return [*pod()["initContainers"], *pod()["containers"]]


def compose() -> dict[str, Any]:
    """Return the Compose file."""
    return documents(ROOT / "compose.yaml")[0]


def compose_environment() -> dict[str, str]:
    """Return the service's environment as Compose makes it from the defaults in the file."""
    written: dict[str, str] = compose()["services"]["authsvc"]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in written.items()}


def pod_environment() -> dict[str, str]:
    """Return the service's environment in a pod."""
    given = {item["name"]: item["value"] for item in pod()["containers"][0]["env"]}
    return {**manifest("configmap")["data"], **given}


def with_files(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Return *environment* with its mounted files and key folder made under *folder*."""
    for name, text in SECRETS.items():
        (folder / name).write_text(f"{text}\n")
    return {**environment, **{name: str(folder / name) for name in SECRETS}, "JWT_KEYS_DIR": str(folder)}


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_every_file_is_yaml(path):
    """What does not even parse fails here, not in a cluster."""
    assert documents(path)


@pytest.mark.parametrize("environment", [compose_environment(), pod_environment()], ids=["compose", "k8s"])
def test_the_service_starts_on_what_it_is_given(tmp_path, environment):
    """With its secrets mounted, the shipped environment is complete and has no problem and no warning."""
    settings = Settings.from_env(with_files(environment, tmp_path))

    assert not settings.is_development
    assert settings.redis.username == "authsvc"
    assert settings.warnings == ()


@pytest.mark.parametrize("environment", [compose_environment(), pod_environment()], ids=["compose", "k8s"])
def test_every_variable_is_a_setting(environment):
    """A name that means nothing would be a default in disguise."""
    assert environment.keys() <= all_names()


def secret_variables(environment: dict[str, str]) -> Iterator[str]:
    """Yield the secrets that *environment* holds the text of."""
    secrets = {variable.name for variable in VARIABLES if variable.kind.is_secret}
    yield from (name for name in environment if name in secrets)


def test_no_file_holds_a_secret():
    """Secrets come as files; where one is named, there is a path and no value."""
    examples = documents(K8S / "secret.example.yaml")
    environments = [service.get("environment", {}) for service in compose()["services"].values()]
    environments += [{item["name"]: item["value"] for item in each["env"]} for each in containers()]
    environments += [manifest("configmap")["data"]]

    assert list(chain.from_iterable(map(secret_variables, environments))) == []
    assert [value for example in examples for value in example["data"].values() if value] == []
    assert all(set(secret) == {"file"} for secret in compose()["secrets"].values())
    assert "secret.example.yaml" not in manifest("kustomization")["resources"]


def test_the_config_map_lists_every_setting_with_its_default():
    """An operator finds each setting that is no secret in one place; what is commented out is the default."""
    text = (K8S / "configmap.yaml").read_text()
    listed = {match["name"]: match["value"] for match in COMMENTED.finditer(text)}
    plain = {variable.name: variable for variable in VARIABLES if not variable.kind.is_secret}
    defaults = {
        name: f'"{variable.default}"' for name, variable in plain.items() if variable.default is not None
    }

    assert listed.keys() == plain.keys()
    assert {name: listed[name] for name in defaults} == defaults


def test_every_manifest_is_applied_or_an_example():
    """No file is forgotten in the kustomization."""
    applied = {*manifest("kustomization")["resources"], "kustomization.yaml", "secret.example.yaml"}

    assert {path.name for path in K8S.glob("*.yaml")} == applied


def test_the_selectors_find_the_pods():
    """An empty selector would match every pod of the namespace, another label none."""
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        manifest("deployment")["spec"]["selector"]["matchLabels"],
        *(service["spec"]["selector"] for service in documents(K8S / "service.yaml")),
        manifest("pdb")["spec"]["selector"]["matchLabels"],
        manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"],
    ]

    assert selectors == [labels] * 5


def test_the_probes_ask_for_paths_that_exist():
    """The kubelet and the image's health check ask the public port for the probes of the service."""
    container = pod()["containers"][0]
    asked = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    app = Flask("probes")
    app.register_blueprint(health)

    assert asked == {
        "startupProbe": {"path": "/v1/health/startup", "port": "http"},
        "livenessProbe": {"path": "/v1/health/live", "port": "http"},
        "readinessProbe": {"path": "/v1/health/ready", "port": "http"},
    }
    assert {get["path"] for get in asked.values()} <= {rule.rule for rule in app.url_map.iter_rules()}
    assert "'/v1/health/live'" in (ROOT / "Dockerfile").read_text()


def test_pods_are_confined():
    """No root, no capability, nothing written but temporary files, no service links, time to finish."""
    spec = pod()

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] == 30
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "limits" in container["resources"]


def test_the_upgrade_runs_before_the_service():
    """The service does not migrate: an init container does, and in Compose a service that ends."""
    command = ["authsvc", "db", "upgrade"]
    services = compose()["services"]

    assert pod()["initContainers"][0]["args"] == command
    assert services["upgrade"]["command"] == command
    assert services["authsvc"]["depends_on"]["upgrade"] == {"condition": "service_completed_successfully"}


def test_redis_keeps_every_key():
    """Eviction would lose revocations; a restart without the append-only file all of them."""
    command = compose()["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"


def test_the_image_is_built_from_the_locked_production_set():
    """Hashed, without the extra that brings the in-memory Redis, not as root, without a shell in between."""
    text = (ROOT / "Dockerfile").read_text()
    production = (ROOT / "requirements" / "prod.txt").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert "--require-hashes \\\n      --requirement requirements/prod.txt" in text
    assert "USER 10001:10001" in text
    assert 'CMD ["authsvc", "serve"]' in text
    assert [name for name in extras["dev"] if re.split(r"[\[>=<]", name)[0] in production] == []
