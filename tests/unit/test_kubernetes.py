"""The rendered manifests agree with the service and with themselves: settings, selectors, ports, limits."""

from __future__ import annotations

import re
import shutil
import subprocess
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from flask import Flask

from authsvc import __version__
from authsvc.api.health import blp as health
from authsvc.settings import VARIABLES, all_names
from tests import ROOT
from tests.manifests import OVERLAYS, Unknown, kinds, load, only, render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.manifests import Document

K8S = ROOT / "k8s"
NAME = "app.kubernetes.io/name"
WORKLOADS = {"Deployment", "StatefulSet"}
#: Set in k8s/base/settings.env although the default is another, or none.
DECIDED = {"WEB_CONCURRENCY", "JWT_ISSUER", "JWT_AUDIENCE", "JWT_KEYS_DIR"}
#: Each selector by its place, and whom it finds.
OWN = {
    "Deployment/authsvc spec.selector": {"authsvc"},
    "Deployment/authsvc spec.template.spec.topologySpreadConstraints.0.labelSelector": {"authsvc"},
    "Service/authsvc spec.selector": {"authsvc"},
    "Service/authsvc-metrics spec.selector": {"authsvc"},
    "PodDisruptionBudget/authsvc spec.selector": {"authsvc"},
    "NetworkPolicy/authsvc spec.podSelector": {"authsvc"},
    # Pods of other namespaces: the gateway and Prometheus.
    "NetworkPolicy/authsvc spec.ingress.0.from.0.podSelector": set(),
    "NetworkPolicy/authsvc spec.ingress.1.from.0.podSelector": set(),
}
STORES = {
    "Deployment/redis spec.selector": {"redis"},
    "Service/redis spec.selector": {"redis"},
    "NetworkPolicy/redis spec.podSelector": {"redis"},
    "NetworkPolicy/redis spec.ingress.0.from.0.podSelector": {"authsvc"},
    "StatefulSet/postgres spec.selector": {"postgres"},
    "Service/postgres spec.selector": {"postgres"},
    "NetworkPolicy/postgres spec.podSelector": {"postgres"},
    "NetworkPolicy/postgres spec.ingress.0.from.0.podSelector": {"authsvc"},
    "NetworkPolicy/authsvc spec.egress.1.to.0.podSelector": {"redis"},
    "NetworkPolicy/authsvc spec.egress.1.to.1.podSelector": {"postgres"},
}
SELECTED = {"dev": OWN | STORES, "prod": OWN}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request) -> str:
    """Return the name of each overlay in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Document]]:
    """Return the documents of each overlay."""
    return {name: render(folder) for name, folder in OVERLAYS.items()}


#: A line of YAML that is commented out; prose has a space behind the sign.
SWITCHED_OFF = re.compile(r"^( *)#(?=-|  )", re.MULTILINE)


def test_commented_rules_of_the_network_policy_can_be_taken(tmp_path):
    """Each of them, by removing the signs: name servers, IPv6, Sentinels, a pooler, traces."""
    shutil.copytree(K8S, tmp_path / "k8s")
    for place in ("base/networkpolicy.yaml", "overlays/prod/stores.yaml"):
        file = tmp_path / "k8s" / place
        file.write_text(SWITCHED_OFF.sub(r"\1", file.read_text()))

    policy = only(render(tmp_path / "k8s" / "overlays" / "prod"), "NetworkPolicy", "authsvc")

    rules = policy["spec"]["egress"]
    ports = [[(port["protocol"], port["port"]) for port in rule["ports"]] for rule in rules]
    assert ports[2:] == [
        [("UDP", 5353), ("TCP", 5353)],
        [("UDP", 53), ("TCP", 53)],
        [("TCP", 26379)],
        [("TCP", 6432)],
        [("TCP", 4318)],
    ]
    assert all(rule["to"] for rule in rules)
    networks = [peer["ipBlock"]["cidr"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    assert [network for network in networks if ip_network(network).version == 6] == ["fd00::/8", "fd00::/8"]


def title(document: Document) -> str:
    """Return what a document is called in a cluster."""
    return f"{document['kind']}/{document['metadata']['name']}"


def pod(documents: list[Document], name: str = "authsvc") -> Document:
    """Return the pod template's spec of a Deployment."""
    spec: Document = only(documents, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def pods(documents: list[Document]) -> dict[str, dict[str, str]]:
    """Return the labels of each workload's pods."""
    return {
        document["metadata"]["name"]: document["spec"]["template"]["metadata"]["labels"]
        for document in documents
        if document["kind"] in WORKLOADS
    }


def selectors(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and labels of every selector of pods in a document."""
    items = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, dict) else ()
    for key, value in items:
        place = (*path, str(key))
        if key in {"selector", "podSelector", "labelSelector"}:
            assert set(value) == {"matchLabels"} or "matchLabels" not in value, place
            yield ".".join(place), value.get("matchLabels", value)
        else:
            yield from selectors(value, place)


def matching(labels: dict[str, str], candidates: dict[str, dict[str, str]]) -> set[str]:
    """Return who of *candidates* carries all of *labels*; nobody may be meant by none."""
    assert labels, "an empty selector takes the whole namespace"
    return {name for name, carried in candidates.items() if labels.items() <= carried.items()}


def test_every_selector_finds_exactly_whom_it_should(rendered, overlay):
    """An empty selector would match every pod of the namespace, a misspelt one none."""
    documents = rendered[overlay]

    found = {
        f"{title(document)} {place}": matching(labels, pods(documents))
        for document in documents
        for place, labels in selectors(document)
    }

    assert found == SELECTED[overlay]


def test_the_service_monitor_finds_the_metrics_alone(rendered, overlay, tmp_path):
    """Prometheus scrapes every pod once, on the metrics port alone, under the job that the alerts name."""
    monitor = only(render(with_components(overlay, tmp_path, "service-monitor")), "ServiceMonitor", "authsvc")
    services = kinds(rendered[overlay], "Service")
    labels = {service["metadata"]["name"]: service["metadata"]["labels"] for service in services}
    ports = {service["metadata"]["name"]: service["spec"]["ports"] for service in services}

    assert matching(monitor["spec"]["selector"]["matchLabels"], labels) == {"authsvc-metrics"}
    assert labels["authsvc-metrics"][monitor["spec"]["jobLabel"]] == "authsvc"
    assert [end["port"] for end in monitor["spec"]["endpoints"]] == [
        port["name"] for port in ports["authsvc-metrics"]
    ]
    assert (
        monitor["metadata"]["namespace"]
        == only(rendered[overlay], "Service", "authsvc")["metadata"]["namespace"]
    )


def test_the_mail_component_gives_the_password_and_a_way_to_the_relay(rendered, overlay, tmp_path):
    """Both containers read the password as a file of the Secret; nothing else leaves the cluster."""
    documents = render(with_components(overlay, tmp_path, "mail"))
    spec = pod(documents)
    given = [
        {variable["name"]: variable.get("value") for variable in container["env"]}.get("SMTP_PASSWORD_FILE")
        for container in (*spec["initContainers"], *spec["containers"])
    ]
    before = only(rendered[overlay], "NetworkPolicy", "authsvc")["spec"]["egress"]
    *others, way = only(documents, "NetworkPolicy", "authsvc")["spec"]["egress"]

    assert given == ["/run/secrets/authsvc/smtp-password"] * 2
    assert others == before
    assert [port["port"] for port in way["ports"]] == [465, 587]


def test_the_component_of_second_factors_gives_the_key_of_the_data(rendered, overlay, tmp_path):
    """Both containers read it as a file of the Secret; nothing else is different."""
    documents = render(with_components(overlay, tmp_path, "second-factors"))
    spec, before = pod(documents), pod(rendered[overlay])
    added = [
        [variable for variable in container["env"] if variable not in plain["env"]]
        for container, plain in zip(
            (*spec["initContainers"], *spec["containers"]),
            (*before["initContainers"], *before["containers"]),
            strict=True,
        )
    ]

    assert added == [[{"name": "DATA_KEY_FILE", "value": "/run/secrets/authsvc/data-key"}]] * 2


def test_the_component_of_a_cluster_takes_its_password_in_place_of_a_url(overlay, tmp_path):
    """In both containers: an upgrade checks the settings, too."""
    documents = render(with_components(overlay, tmp_path, "redis-cluster"))

    spec = pod(documents)
    for container in (spec["initContainers"][0], spec["containers"][0]):
        names = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert names["REDIS_PASSWORD_FILE"] == "/run/secrets/authsvc/redis-password"
        assert "REDIS_URL_FILE" not in names


def with_components(overlay: str, folder: Path, *names: str) -> Path:
    """Return a copy of *overlay*, below *folder*, with components that its users may add."""
    text = (OVERLAYS[overlay] / "kustomization.yaml").read_text()
    place = folder / "k8s" / "overlays" / overlay
    shutil.copytree(K8S, folder / "k8s")
    components = ", ".join(f"../../components/{name}" for name in names)
    (place / "kustomization.yaml").write_text(f"{text}\ncomponents: [{components}]\n")
    return place


def test_ports_lead_where_they_say(rendered, overlay):
    """Services, probes and the network policy use ports that the pods have; the public Service has one."""
    documents = rendered[overlay]
    data = only(documents, "ConfigMap", _config_map_name(documents))["data"]
    container = pod(documents)["containers"][0]
    own = {port["name"]: port["containerPort"] for port in container["ports"]}
    targets = {
        service: [port["targetPort"] for port in only(documents, "Service", service)["spec"]["ports"]]
        for service in ("authsvc", "authsvc-metrics")
    }
    rules = only(documents, "NetworkPolicy", "authsvc")["spec"]["ingress"]

    assert own == {"http": int(data["PORT"]), "metrics": int(data["METRICS_PORT"])}
    assert targets == {"authsvc": ["http"], "authsvc-metrics": ["metrics"]}
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [[own["http"]], [own["metrics"]]]


def _config_map_name(documents: list[Document]) -> str:
    """Return the one ConfigMap that all containers of the service read."""
    spec = pod(documents)
    (name,) = {
        source["configMapRef"]["name"]
        for container in [*spec["initContainers"], *spec["containers"]]
        for source in container["envFrom"]
    }
    return str(name)


def test_the_autoscaler_and_the_budget_fit_together(rendered, overlay):
    """The autoscaler alone says how many; a disruption takes one at a time and a rollout none away."""
    documents = rendered[overlay]
    deployment = only(documents, "Deployment", "authsvc")["spec"]
    scaler = only(documents, "HorizontalPodAutoscaler", "authsvc")["spec"]

    assert "replicas" not in deployment
    assert {**scaler["scaleTargetRef"]} == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "authsvc"}
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert only(documents, "PodDisruptionBudget", "authsvc")["spec"]["maxUnavailable"] == 1
    assert (scaler["minReplicas"] >= 3) == (overlay == "prod")


def test_the_probes_ask_for_paths_that_exist(rendered, overlay):
    """The kubelet asks the public port, and an outage of a store is no reason to restart a pod."""
    container = pod(rendered[overlay])["containers"][0]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    app = Flask("probes")
    app.register_blueprint(health)

    assert asked == {
        "startup": {"path": "/v1/health/startup", "port": "http"},
        "liveness": {"path": "/v1/health/live", "port": "http"},
        "readiness": {"path": "/v1/health/ready", "port": "http"},
    }
    assert {get["path"] for get in asked.values()} <= {rule.rule for rule in app.url_map.iter_rules()}


def test_every_pod_meets_the_restricted_standard(rendered, overlay):
    """No root, no capability, a read-only root, no token, no service links; the namespace insists on it."""
    documents = rendered[overlay]
    namespace = kinds(documents, "Namespace")[0]["metadata"]
    specs = [x["spec"]["template"]["spec"] for x in documents if x["kind"] in WORKLOADS]

    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {x["metadata"].get("namespace") for x in documents} == {namespace["name"], None}
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (spec["enableServiceLinks"], spec["automountServiceAccountToken"]) == (False, False)
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}
    assert pod(documents)["securityContext"]["runAsUser"] == 10001


def test_no_secret_is_in_a_manifest(rendered, overlay):
    """Secrets come as mounted files: no Secret is applied, and no variable holds the text of one."""
    documents = rendered[overlay]
    secrets = {variable.name for variable in VARIABLES.values() if variable.kind.is_secret}
    spec = pod(documents)
    given = {
        item["name"]
        for container in [*spec["initContainers"], *spec["containers"]]
        for item in container["env"]
    }
    data = only(documents, "ConfigMap", _config_map_name(documents))["data"]
    examples = load(K8S / "examples" / "secrets.yaml")

    assert kinds(documents, "Secret") == []
    assert (given | data.keys()) & secrets == set()
    assert given | data.keys() <= all_names()
    assert [value for example in examples for value in example["data"].values() if value] == []


def test_the_settings_are_all_listed_with_their_defaults():
    """An operator finds each setting that is no secret in one file, and no default that is out of date."""
    text = (K8S / "base" / "settings.env").read_text()
    lines = [line.removeprefix("# ").partition("=") for line in text.splitlines() if "=" in line]
    listed = {name: value for name, sign, value in lines if name.isupper()}
    plain = {
        variable.name: variable.default for variable in VARIABLES.values() if not variable.kind.is_secret
    }

    assert listed.keys() == plain.keys()
    assert {name: listed[name] for name in plain.keys() - DECIDED} == {
        name: plain[name] or "" for name in plain.keys() - DECIDED
    }


def test_the_image_is_of_this_version_and_others_are_pinned(rendered, overlay):
    """No image floats with what somebody pushes under "latest"."""
    specs = [x["spec"]["template"]["spec"] for x in rendered[overlay] if x["kind"] in WORKLOADS]
    containers = [each for spec in specs for each in [*spec.get("initContainers", []), *spec["containers"]]]
    images = {container["image"] for container in containers}
    own = {image for image in images if image.split(":")[0].endswith("authsvc")}

    assert own == {"dev": {"authsvc:dev"}, "prod": {f"registry.example.com/authsvc:{__version__}"}}[overlay]
    assert all(
        image.partition(":")[2][0].isdigit() and "." in image.partition(":")[2] for image in images - own
    )


def test_every_renderer_says_the_same(overlay, tmp_path):
    """The renderer of these tests and that of every kubectl or kustomize at hand agree in every value."""
    tools = {"kubectl": ("kubectl", "kustomize"), "kustomize": ("kustomize", "build")}
    folder = with_components(overlay, tmp_path, "service-monitor", "mail", "second-factors")
    ours = sorted(render(folder), key=title)

    for command in (command for name, command in tools.items() if shutil.which(name)):
        text = subprocess.run([*command, folder], capture_output=True, text=True, check=True).stdout
        assert sorted(yaml.safe_load_all(text), key=title) == ours


@pytest.mark.parametrize(
    "line",
    [
        "namePrefix: x-",
        "commonLabels: {a: b}",
        "replicas: [{name: authsvc, count: 2}]",
        "kind: Kustomization",
    ],
)
def test_what_the_renderer_does_not_know_it_refuses(tmp_path, line):
    """A rendering that leaves something out would test other manifests than those that are applied."""
    (tmp_path / "kustomization.yaml").write_text(f"kind: Kustomization\n{line}\n")

    with pytest.raises(Unknown):
        render(tmp_path)
