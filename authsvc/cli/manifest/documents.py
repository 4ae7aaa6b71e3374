"""The documents of rendered Kubernetes YAML, limited to what concerns the service."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import yaml

Node = Mapping[str, Any]

#: Kinds whose pods are described in spec.template.
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")
OWN_NAME = "authsvc"


class ManifestError(ValueError):
    """The problems of a manifest, one per line."""

    def __init__(self, problems: Sequence[str]) -> None:
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__("\n  ".join((f"{len(problems)} {noun} in the manifest:", *problems)))


def mapping(node: object, what: str) -> Node:
    """*node* as a mapping, empty where it is absent; raises ManifestError, naming *what* it should be."""
    if node is None:
        return {}
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise ManifestError([f"{what} is not a mapping of names"])
    return node


def sequence(node: object, what: str) -> list[Node]:
    """*node* as a list of mappings, empty where it is absent; raises ManifestError."""
    if node is None:
        return []
    if not isinstance(node, list):
        raise ManifestError([f"{what} is not a list"])
    return [mapping(item, f"an item of {what}") for item in node]


def words(node: object, what: str) -> list[str]:
    """*node* as a list of texts, empty where it is absent; raises ManifestError."""
    if node is None:
        return []
    if not isinstance(node, list) or not all(isinstance(item, str) for item in node):
        raise ManifestError([f"{what} is not a list of texts (quote numbers)"])
    return list(node)


@dataclass(frozen=True, slots=True)
class Container:
    """One container; *where* names it in a message."""

    name: str
    where: str
    spec: Node

    def command_line(self) -> list[str]:
        """The command line in the manifest; empty: that of the image."""
        command = words(self.spec.get("command"), f"{self.where}: command")
        return command + words(self.spec.get("args"), f"{self.where}: args")

    def is_own(self) -> bool:
        """True if it runs this service or one of its commands."""
        line = self.command_line()
        if line:
            return any(word.rpartition("/")[2] == OWN_NAME for word in line)
        image = str(self.spec.get("image", "")).partition("@")[0].rpartition("/")[2]
        return OWN_NAME in {self.name, image.partition(":")[0]}

    def is_server(self) -> bool:
        """True if it runs ``serve``, which is also the default of the image."""
        line = self.command_line()
        return self.is_own() and (not line or "serve" in line)


@dataclass(frozen=True, slots=True)
class Pod:
    """The pods of one workload."""

    title: str
    namespace: str
    labels: Node
    spec: Node

    def own_containers(self) -> list[Container]:
        """The containers that run this service; init containers first."""
        specs = [
            item
            for kind in ("initContainers", "containers")
            for item in sequence(self.spec.get(kind), f"{self.title}: {kind}")
        ]
        names = [(str(spec.get("name", "?")), spec) for spec in specs]
        containers = [Container(name, f"{self.title}, container {name}", spec) for name, spec in names]
        return [container for container in containers if container.is_own()]

    def volume(self, name: str) -> Node | None:
        """The volume of that name."""
        volumes = sequence(self.spec.get("volumes"), f"{self.title}: volumes")
        return next((volume for volume in volumes if volume.get("name") == name), None)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All documents of a file."""

    documents: tuple[Node, ...]

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read *text*, of one document or many; raises ManifestError."""
        try:
            read = [mapping(document, "a document") for document in yaml.safe_load_all(text)]
        except yaml.YAMLError as error:
            raise ManifestError([f"this is no YAML: {' '.join(str(error).split())}"]) from error
        return cls(tuple(document for node in read for document in _flattened(node)))

    def pods(self) -> Iterator[Pod]:
        """The pods of every workload."""
        for document in self.documents:
            if document.get("kind") in WORKLOADS:
                title = f"{document['kind']}/{_name(document)}"
                template = mapping(_within(document, title, "spec").get("template"), f"{title}: template")
                labels = _within(_within(template, title, "metadata"), title, "labels")
                yield Pod(title, _namespace(document), labels, _within(template, title, "spec"))

    def services(self, pod: Pod) -> Iterator[tuple[str, list[Node]]]:
        """Title and ports of each Service that leads to *pod*."""
        for document in self._of("Service", pod.namespace):
            title = f"Service/{_name(document)}"
            spec = _within(document, title, "spec")
            selector = _within(spec, title, "selector")
            if selector and selector.items() <= pod.labels.items():
                yield title, sequence(spec.get("ports"), f"{title}: ports")

    def entries(self, kind: str, name: object, namespace: str) -> dict[str, str | None] | None:
        """
        The entries of a ConfigMap or Secret; None where it is not in the file.

        An entry without a value, as in examples, is unknown: None.
        """
        found = next((each for each in self._of(kind, namespace) if _name(each) == name), None)
        if found is None:
            return None
        title = f"{kind}/{name}"
        data = _within(found, title, "data")
        if kind != "Secret":
            return {key: _text(value, f"{title}: {key}") for key, value in data.items()}
        plain = _within(found, title, "stringData")
        decoded = {key: _decoded(value, f"{title}: {key}") for key, value in data.items()}
        return decoded | {key: _text(value, f"{title}: {key}") for key, value in plain.items()}

    def _of(self, kind: str, namespace: str) -> Iterator[Node]:
        for document in self.documents:
            if document.get("kind") == kind and _namespace(document) == namespace:
                yield document


def _flattened(document: Node) -> Iterator[Node]:
    if document.get("kind") == "List":
        yield from sequence(document.get("items"), "items")
    elif document:
        yield document


def _within(node: Node, title: str, key: str) -> Node:
    return mapping(node.get(key), f"{title}: {key}")


def _name(document: Node) -> str:
    return str(_within(document, "a document", "metadata").get("name", "?"))


def _namespace(document: Node) -> str:
    return str(_within(document, "a document", "metadata").get("namespace", ""))


def _text(value: object, what: str) -> str | None:
    """A value of a ConfigMap; the cluster rejects values that YAML reads as numbers or booleans."""
    if value is not None and not isinstance(value, str):
        raise ManifestError([f"{what} is no text: put it in quotes"])
    return value


def _decoded(value: object, what: str) -> str | None:
    """A value of a Secret; None for an empty one, as in examples."""
    text = _text(value, what)
    if not text:
        return None
    try:
        return b64decode(text, validate=True).decode("utf-8", errors="surrogateescape")
    except binascii.Error as error:
        raise ManifestError([f"{what} is not base64"]) from error
