"""The Dockerfile, the Compose file and the carried files agree with the service and the repository."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from authsvc.settings import VARIABLES, Settings, all_names
from tests import ROOT
from tests.unit.settings.env import PEPPER, TOKEN_SECRET

TOP_LEVEL = {"name", "services", "networks", "volumes", "secrets"}
#: Of the Compose specification, as far as this file uses them.
SERVICE_KEYS = {
    *("image", "build", "command", "environment", "profiles", "depends_on", "healthcheck", "restart"),
    *("networks", "network_mode", "ports", "secrets", "volumes", "tmpfs", "read_only"),
    *("cap_drop", "security_opt", "stop_grace_period"),
}
SECRETS = {
    "DATABASE_URL_FILE": "postgresql://authsvc:db-Pa55word@postgres:5432/authsvc",
    "REDIS_PASSWORD_FILE": "redis-Pa55word",
    "TOKEN_SECRET_FILE": TOKEN_SECRET,
    "PASSWORD_PEPPER_FILE": PEPPER,
}


def compose() -> dict[str, Any]:
    """Return the Compose file."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return read


def compose_environment() -> dict[str, str]:
    """Return the service's environment as Compose makes it from the defaults in the file."""
    written: dict[str, str] = compose()["services"]["authsvc"]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in written.items()}


def with_files(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Return *environment* with its mounted files and key folder made under *folder*."""
    for name, text in SECRETS.items():
        (folder / name).write_text(f"{text}\n")
    return {**environment, **{name: str(folder / name) for name in SECRETS}, "JWT_KEYS_DIR": str(folder)}


def test_the_service_starts_on_what_it_is_given(tmp_path):
    """With its secrets mounted, the shipped environment is complete and has no problem and no warning."""
    settings = Settings.from_env(with_files(compose_environment(), tmp_path))

    assert not settings.is_development
    assert settings.redis.username == "authsvc"
    assert settings.warnings == ()


def test_no_file_holds_a_secret():
    """Secrets come as files; where one is named, there is a path and no value."""
    secrets = {variable.name for variable in VARIABLES.values() if variable.kind.is_secret}
    environments = [service.get("environment", {}) for service in compose()["services"].values()]

    assert [name for environment in environments for name in environment if name in secrets] == []
    assert all(set(secret) == {"file"} for secret in compose()["secrets"].values())


def test_every_variable_is_a_setting():
    """A name that means nothing would be a default in disguise."""
    assert compose_environment().keys() <= all_names()


def test_the_catch_all_relay_is_for_this_machine(tmp_path):
    """Laid over compose.yaml it makes a service that sends mails; its pages are for this machine."""
    over = yaml.safe_load((ROOT / "compose.mailbox.yaml").read_text())["services"]
    environment = {**compose_environment(), **over["authsvc"]["environment"]}

    settings = Settings.from_env(with_files(environment, tmp_path))

    assert settings.mail.is_on
    assert settings.mail.smtp_host in over
    assert settings.warnings == ()
    assert all(port.startswith("127.0.0.1:") for port in over["mailbox"]["ports"])
    assert re.search(r":v?\d+\.\d+", over["mailbox"]["image"])
    assert {key for service in over.values() for key in service} <= SERVICE_KEYS


def test_what_a_service_of_compose_uses_is_there():
    """Networks, volumes, secrets and other services are declared; what is mounted lies in the repository."""
    file = compose()
    for service in file["services"].values():
        mounts = [mount.split(":")[0] for mount in service.get("volumes", [])]
        files = {mount for mount in mounts if mount.startswith("./")}

        assert {mount for mount in files if not (ROOT / mount).is_file()} == set()
        assert set(mounts) - files <= file["volumes"].keys()
        assert set(service.get("networks", [])) <= file["networks"].keys()
        assert set(service.get("secrets", [])) <= file["secrets"].keys()
        assert service.get("depends_on", {}).keys() <= file["services"].keys()


def test_compose_uses_no_key_that_its_specification_lacks():
    """A misspelt key would be refused by the first who runs it."""
    file = compose()

    assert {key for key in file if not key.startswith("x-")} == TOP_LEVEL
    assert {key for service in file["services"].values() for key in service} <= SERVICE_KEYS


def test_nothing_but_this_machine_reaches_compose():
    """A proxy with TLS stands in front: no port is published to the world."""
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]

    assert len(ports) == 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_images_of_others_are_pinned():
    """No image floats: its tag names a version, down to the second number at least."""
    images = {service["image"] for service in compose()["services"].values()} - {"authsvc:local"}
    defaults = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", image) for image in images]

    assert len(defaults) == 4
    assert [image for image in defaults if not re.search(r":v?\d+\.\d+", image)] == []


def test_prometheus_scrapes_the_metrics_port_and_grafana_shows_the_dashboard():
    """Each of the mounted files leads to the next; the dashboard asks which Prometheus, wherever it is."""
    folder = ROOT / "k8s" / "observability"
    services = compose()["services"]
    prometheus = yaml.safe_load((folder / "prometheus.yaml").read_text())
    source = yaml.safe_load((folder / "grafana" / "datasources.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((folder / "grafana" / "dashboards.yaml").read_text())["providers"][0]
    mounted = {
        mount.split(":")[1] for name in ("prometheus", "grafana") for mount in services[name]["volumes"]
    }

    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == [
        f"authsvc:{compose_environment()['METRICS_PORT']}"
    ]
    assert set(prometheus["rule_files"]) <= mounted
    assert source["url"] == "http://prometheus:9090"
    assert f"{provider['options']['path']}/authsvc.json" in mounted
    dashboard = json.loads((folder / "dashboard.json").read_text())
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {f"${{{variable['name']}}}"}


def test_the_upgrade_runs_before_the_service():
    """The service does not migrate: a service that ends does, and the other waits for it."""
    services = compose()["services"]

    assert services["upgrade"]["command"] == ["authsvc", "db", "upgrade"]
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
    assert "'/v1/health/live'" in text
    assert [name for name in extras["dev"] if re.split(r"[\[>=<]", name)[0] in production] == []
