"""``authsvc config check --manifest``: what it finds in a rendered manifest before a cluster does."""

from __future__ import annotations

import copy
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from authsvc.cli import main
from authsvc.cli.manifest import ManifestError, check_manifest
from tests.manifests import OVERLAYS, load, only, render
from tests.unit.settings.env import TOKEN_SECRET

if TYPE_CHECKING:
    from tests.manifests import Document

SECRETS = OVERLAYS["prod"].parents[1] / "examples" / "secrets.yaml"
#: YAML makes a number of it, which a cluster refuses.
UNQUOTED = """
kind: ConfigMap
metadata: {name: c}
data: {PORT: 8080}
---
kind: Deployment
spec: {template: {spec: {containers: [{image: "a/authsvc:1", envFrom: [{configMapRef: {name: c}}]}]}}}
"""
RENDERED = {name: render(folder) for name, folder in OVERLAYS.items()}


class Draft:
    """A copy of a rendered overlay that a test breaks."""

    def __init__(self, overlay: str = "prod") -> None:
        self.warnings: list[str] = []
        self.documents: list[Document] = copy.deepcopy(RENDERED[overlay])
        self.pod: Document = only(self.documents, "Deployment", "authsvc")["spec"]["template"]["spec"]
        self.upgrade: Document = self.pod["initContainers"][0]
        self.server: Document = self.pod["containers"][0]
        (self.config,) = (each for each in self.documents if each["kind"] == "ConfigMap")

    def verdict(self) -> str:
        """Return what the check says."""
        try:
            return check_manifest(yaml.safe_dump_all(self.documents), self.warnings.append)
        except ManifestError as error:
            return str(error)

    def problems(self) -> list[str]:
        """Return the problems that the check names, each without the place where it is the server's."""
        heading, *lines = self.verdict().split("\n  ")
        assert heading.startswith(f"{len(lines)} problem")
        return [line.removeprefix("Deployment/authsvc, container authsvc: ") for line in lines]

    def set_variable(self, name: str, **value: Any) -> None:
        """Give the server one more variable, in front of the others."""
        self.server["env"].insert(0, {"name": name, **value})

    def add_secrets(self, data: dict[str, str | None]) -> None:
        """Put the Secret with the service's secrets into the file."""
        encoded = {key: b64encode(text.encode()).decode() if text else None for key, text in data.items()}
        metadata = {"name": "authsvc", "namespace": "authsvc"}
        self.documents.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_overlays_fit(overlay):
    """What the project ships has no problem; the stores of the development overlay are no concern."""
    assert Draft(overlay).verdict() == "Deployment/authsvc (upgrade, authsvc)"


def test_unknown_and_contradictory_variables_are_named_with_their_container():
    """Each container is checked with what it gets: a ConfigMap that both read is wrong twice."""
    draft = Draft()
    draft.config["data"] |= {"AUTHSVC_ENVV": "production", "METRICS_PORT": "8080"}
    draft.set_variable("REDIS_HOST", value="redis")

    found = draft.problems()

    assert "AUTHSVC_ENVV is unknown; did you mean AUTHSVC_ENV?" in found
    assert "METRICS_PORT contradicts PORT: both are 8080; expected two ports" in found
    assert "REDIS_URL contradicts REDIS_HOST: set the URL alone or the parts alone" in found
    assert any(line.startswith("Deployment/authsvc, container upgrade: AUTHSVC_ENVV") for line in found)


def test_a_slip_is_refused_and_a_stranger_s_name_is_a_warning():
    """Before anything is applied: the pod would start, and go by the default."""
    draft = Draft()
    draft.config["data"] |= {
        "SESSION_IDLE_TLL": "60",
        "REDIS_POOL_SIZE": "7",
        "REDIS_PORT_6379_TCP": "tcp://h:6379",
    }

    found = draft.problems()

    assert "SESSION_IDLE_TLL is unknown; did you mean SESSION_IDLE_TTL?" in found
    assert [line for line in draft.warnings if "container authsvc:" in line] == [
        (
            "Deployment/authsvc, container authsvc: REDIS_POOL_SIZE is no setting of the service,"
            " and has no effect on it"
        )
    ]


def test_a_missing_variable_is_named():
    """The start would fail in the cluster, after the old pods have gone."""
    draft = Draft()
    del draft.config["data"]["JWT_ISSUER"]
    draft.server["env"] = [item for item in draft.server["env"] if item["name"] != "TOKEN_SECRET_FILE"]

    found = draft.problems()

    assert sum("JWT_ISSUER is missing" in line for line in found) == 2
    assert sum("TOKEN_SECRET is missing" in line for line in found) == 1


def test_a_secret_that_is_not_in_the_file_may_bring_what_is_missing():
    """Nobody puts Secrets beside manifests: what they may hold is no problem."""
    draft = Draft()
    del draft.config["data"]["JWT_ISSUER"]
    for container in (draft.upgrade, draft.server):
        container["envFrom"].append({"secretRef": {"name": "elsewhere"}})

    assert draft.verdict().startswith("Deployment/authsvc")


def test_a_secret_in_the_file_is_read():
    """A weak secret is found without a cluster, and is not repeated; one without a value is unknown."""
    draft = Draft()
    draft.add_secrets({"database-url": "mysql://db/x", "redis-url": None, "token-secret": "Pa55word"})

    verdict = draft.verdict()

    assert "DATABASE_URL" in verdict
    assert "TOKEN_SECRET is weak" in verdict
    assert (
        "PASSWORD_PEPPER_FILE: /run/secrets/authsvc/password-pepper: the volume has no password-pepper"
        in verdict
    )
    assert "REDIS_URL" not in verdict
    assert "Pa55word" not in verdict
    assert "mysql" not in verdict


def test_good_secrets_in_the_file_are_good():
    """One trailing newline is dropped, as it is from a file."""
    draft = Draft()
    draft.add_secrets(
        {
            "database-url": "postgresql://authsvc:x@db:5432/authsvc\n",
            "redis-url": "redis://redis:6379/0\n",
            "token-secret": f"{TOKEN_SECRET}\n",
            "password-pepper": TOKEN_SECRET[::-1],
        }
    )

    assert draft.verdict().startswith("Deployment/authsvc")


def test_examples_of_secrets_are_no_problem():
    """The file that says which Secrets there are can be checked along."""
    draft = Draft()
    draft.documents += [
        example | {"metadata": example["metadata"] | {"namespace": "authsvc"}}
        for example in load(SECRETS)
        if example["metadata"]["name"] == "authsvc"
    ]

    assert draft.verdict().startswith("Deployment/authsvc")


def test_a_variable_in_clear_and_as_a_file_is_set_twice():
    """As the service itself would say."""
    draft = Draft()
    draft.set_variable("TOKEN_SECRET", valueFrom={"secretKeyRef": {"name": "authsvc", "key": "token-secret"}})

    (found,) = draft.problems()

    assert found.startswith("TOKEN_SECRET contradicts TOKEN_SECRET_FILE: set one of the two")


def test_paths_that_nothing_is_mounted_at_are_named():
    """A file or a folder of keys that is not there."""
    draft = Draft()
    draft.server["volumeMounts"] = [
        mount for mount in draft.server["volumeMounts"] if "secrets" not in mount["mountPath"]
    ]

    found = draft.problems()

    assert "JWT_KEYS_DIR: nothing is mounted at /run/secrets/authsvc-keys" in found
    assert "TOKEN_SECRET_FILE: nothing is mounted at /run/secrets/authsvc/token-secret" in found
    assert len(found) == 5


def test_items_of_a_volume_rename_and_leave_out():
    """Only what a volume takes from its Secret is there, under the name that it gives."""
    draft = Draft()
    items = [{"key": key, "path": key} for key in ("database-url", "redis-url", "token-secret")]
    draft.pod["volumes"][0]["secret"]["items"] = items

    assert {line.rpartition(": ")[2] for line in draft.problems()} == {
        "/run/secrets/authsvc/password-pepper is not among the items of the volume"
    }


def test_references_are_expanded_as_the_kubelet_does():
    """``$(NAME)`` stands for what was set before, and ``$$(NAME)`` for itself."""
    draft = Draft()
    draft.server["env"] += [
        {"name": "ISSUER_HOST", "value": "auth.example.org"},
        {"name": "JWT_ISSUER", "value": "https://$(ISSUER_HOST)"},
        {"name": "JWT_AUDIENCE", "value": "$$(ISSUER_HOST)"},
        {"name": "LOG_LEVEL", "value": "$(NOBODY)"},
    ]

    assert draft.problems() == [
        "LOG_LEVEL refers to $(NOBODY), which is not set before it",
    ]


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (
            {"configMapKeyRef": {"name": "nowhere", "key": "x"}},
            ["LOG_LEVEL: there is no x in ConfigMap nowhere"],
        ),
        ({"configMapKeyRef": {"name": "nowhere", "key": "x", "optional": True}}, None),
        ({"secretKeyRef": {"name": "nowhere", "key": "x"}}, None),
        ({"fieldRef": {"fieldPath": "metadata.name"}}, None),
    ],
)
def test_values_from_elsewhere_are_looked_up(origin, said):
    """A ConfigMap must be in the file; Secrets and the pod itself are known to the cluster alone."""
    draft = Draft()
    draft.set_variable("LOG_LEVEL", valueFrom=origin)

    assert (draft.problems() if said else draft.verdict()) == (
        said or "Deployment/authsvc (upgrade, authsvc)"
    )


def test_a_renamed_config_map_is_missed():
    """The pods would not start."""
    draft = Draft()
    draft.config["metadata"]["name"] = "other"

    assert any(line.startswith("envFrom: there is no ConfigMap authsvc-") for line in draft.problems())


def test_probes_and_ports_follow_the_settings():
    """A changed PORT without its ports leaves probes and Services that nobody answers."""
    draft = Draft()
    draft.config["data"]["PORT"] = "8081"

    assert draft.problems() == [
        "Deployment/authsvc: Service/authsvc: port http leads to 8080, which is not PORT or METRICS_PORT",
        "port http is 8080; the service listens on 8081 and 9464",
        *(f"{kind}Probe asks port http; PORT is 8081" for kind in ("startup", "liveness", "readiness")),
    ]


def test_a_liveness_probe_must_not_ask_for_the_stores():
    """It would restart every pod during an outage that they are built to bear."""
    draft = Draft()
    draft.server["livenessProbe"]["httpGet"] = {"path": "/v1/health/ready", "port": 8080}

    assert draft.problems() == ["livenessProbe asks /v1/health/ready; expected /v1/health/live"]


@pytest.mark.parametrize(
    ("pre_stop", "grace_s", "needed_s"),
    [
        ({"exec": {"command": ["sleep", "5"]}}, 24, 25),
        ({"sleep": {"seconds": 15}}, None, 35),
        (None, 19, 20),
    ],
)
def test_the_grace_period_covers_pre_stop_and_the_server(pre_stop, grace_s, needed_s):
    """Else the kubelet kills requests that are under way."""
    draft = Draft()
    draft.pod["terminationGracePeriodSeconds"] = grace_s or 30
    draft.server["lifecycle"] = {"preStop": pre_stop}

    (found,) = draft.problems()

    assert found.startswith(f"terminationGracePeriodSeconds is {grace_s or 30}; expected {needed_s} or more")


def test_service_links_must_be_off():
    """A Service named redis would write REDIS_PORT=tcp://… into the pod."""
    draft = Draft()
    del draft.pod["enableServiceLinks"]

    (found,) = draft.problems()

    assert found.startswith("Deployment/authsvc: enableServiceLinks is not false")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no workload runs authsvc"),
        ("{", "this is no YAML"),
        ("- a", "a document is not a mapping"),
        ("kind: Deployment\nspec: 3", "Deployment/?: spec is not a mapping"),
        ("kind: Deployment\nspec: {template: {spec: {containers: x}}}", "containers is not a list"),
        (
            "kind: Deployment\nspec: {template: {spec: {containers: [{image: authsvc, args: [1]}]}}}",
            "args is not a list of texts",
        ),
        (
            UNQUOTED,
            "ConfigMap/c: PORT is no text: put it in quotes",
        ),
    ],
)
def test_what_is_no_manifest_is_refused_in_words(text, said):
    """A broken file gets one line that says what is wrong, never a traceback."""
    with pytest.raises(ManifestError, match="1 problem in the manifest"):
        check_manifest(text, print)

    with pytest.raises(ManifestError) as refusal:
        check_manifest(text, print)
    assert said in str(refusal.value)


def test_the_command_reads_a_file_and_says_how_it_went(tmp_path, capsys):
    """Status 0 and a line of praise, or status 1 and every problem; the environment does not matter."""
    file = tmp_path / "rendered.yaml"
    draft = Draft()
    file.write_text(yaml.safe_dump_all(draft.documents))

    praised = main(["config", "check", "--manifest", str(file)])
    praise = capsys.readouterr()
    draft.pod["terminationGracePeriodSeconds"] = 1
    file.write_text(yaml.safe_dump({"kind": "List", "items": draft.documents}))
    refused = main(["config", "check", "--manifest", str(file)])
    refusal = capsys.readouterr()

    assert (praised, praise) == (0, ("", "the manifest fits: Deployment/authsvc (upgrade, authsvc)\n"))
    assert refused == 1
    assert refusal.out == ""
    assert refusal.err.startswith(
        "authsvc: 1 problem in the manifest:\n  Deployment/authsvc, container authsvc: ter"
    )
