"""
Renders the kustomizations of ``k8s/`` as ``kubectl kustomize`` does, where no kubectl is at hand.

It knows what they use and refuses everything else: a field that it does not know is an error, not a
rendering that differs from the real one.  ``python -m tests.manifests k8s/overlays/prod`` prints one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

Document = dict[str, Any]

OVERLAYS = {name: ROOT / "k8s" / "overlays" / name for name in ("dev", "prod")}
FIELDS = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "configMapGenerator",
    "patches",
    "images",
}
#: Kinds that lie in no namespace.
CLUSTER_WIDE = {"Namespace"}
#: Lists that a strategic merge joins by a key; every other list is replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
#: How a hash is written, so that it never spells a word.
HASH_LETTERS = str.maketrans({"0": "g", "1": "h", "3": "k", "a": "m", "e": "t"})
HASH_LENGTH = 10


class Unknown(Exception):
    """A kustomization uses something that this renderer does not know."""


class OnceLoader(yaml.SafeLoader):
    """YAML in which no key occurs twice: kubectl refuses it, where PyYAML takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's
        """Return the mapping; raises Unknown where a key is written twice."""
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise Unknown(f"twice: {', '.join(sorted(twice))} ({node.start_mark})")
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


@dataclass(slots=True)
class Accumulated:
    """What a kustomization has made so far; ``generated`` are ConfigMaps that wait for their hash."""

    documents: list[Document] = field(default_factory=list)
    generated: dict[str, dict[str, str]] = field(default_factory=dict)


def render(folder: Path) -> list[Document]:
    """Return the documents of the kustomization in *folder*; raises Unknown."""
    made = _accumulate(folder, Accumulated())
    names = {name: _hashed(name, data) for name, data in made.generated.items()}
    namespace = _kustomization(folder).get("namespace")
    maps = [_config_map(names[name], data, namespace) for name, data in made.generated.items()]
    for document in made.documents:
        _rename_references(document, names)
    return [*made.documents, *maps]


def load(path: Path) -> list[Document]:
    """Return the documents of a YAML file, with every alias written out."""
    return [_unshared(document) for document in yaml.load_all(path.read_text(), OnceLoader) if document]


def kinds(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of one *kind*."""
    return [document for document in documents if document["kind"] == kind]


def only(documents: list[Document], kind: str, name: str) -> Document:
    """Return the one document of *kind* that is called *name*."""
    (found,) = (document for document in kinds(documents, kind) if document["metadata"]["name"] == name)
    return found


def _accumulate(folder: Path, made: Accumulated) -> Accumulated:
    kustomization = _kustomization(folder)
    for name in [*kustomization.get("resources", []), *kustomization.get("components", [])]:
        place = (folder / name).resolve()
        if place.is_dir():
            _accumulate(place, made)
        else:
            made.documents += load(place)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(generator, folder, made.generated)
    for patch in kustomization.get("patches", []):
        _patch(patch, folder, made.documents)
    for document in made.documents:
        _place(document, kustomization)
    return made


def _kustomization(folder: Path) -> Document:
    (found,) = load(folder / "kustomization.yaml")
    if found["kind"] not in {"Kustomization", "Component"}:
        raise Unknown(found["kind"])
    _refuse_others(found, FIELDS)
    return found


def _refuse_others(given: Document, known: set[str]) -> None:
    if others := given.keys() - known:
        raise Unknown(", ".join(sorted(others)))


def _generate(generator: Document, folder: Path, generated: dict[str, dict[str, str]]) -> None:
    _refuse_others(generator, {"name", "behavior", "envs"})
    name = generator["name"]
    behavior = generator.get("behavior", "create")
    if (behavior == "merge") != (name in generated) or behavior not in {"create", "merge"}:
        raise Unknown(f"behavior {behavior} of {name}")
    for file in generator["envs"]:
        generated[name] = generated.get(name, {}) | env_file(folder / file)


def env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file of lines ``NAME=value``; comments and empty lines count for nothing."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.partition("=") for line in lines]
    if wrong := [name for name, sign, _ in pairs if not sign or not name.isidentifier()]:
        raise Unknown(f"{path.name}: {wrong}")
    return {name: value for name, _, value in pairs}


def _hashed(name: str, data: dict[str, str]) -> str:
    # kustomize leaves the name out of the hash, but not its place.
    text = json.dumps({"data": data, "kind": "ConfigMap", "name": ""}, separators=(",", ":"), sort_keys=True)
    if not text.isascii() or set(text) & set("<>&"):
        raise Unknown(f"how {name} is hashed: it has characters that JSON may write in two ways")
    digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]
    return f"{name}-{digest.translate(HASH_LETTERS)}"


def _config_map(name: str, data: dict[str, str], namespace: str | None) -> Document:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _rename_references(node: Any, names: dict[str, str]) -> None:
    """Point each reference to a generated ConfigMap at its hashed name."""
    if isinstance(node, list):
        for item in node:
            _rename_references(item, names)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in {"configMapRef", "configMapKeyRef", "configMap"}:
                value["name"] = names.get(value["name"], value["name"])
            _rename_references(value, names)


def _place(document: Document, kustomization: Document) -> None:
    """Give *document* the kustomization's namespace and images."""
    namespace = kustomization.get("namespace")
    if namespace and document["kind"] not in CLUSTER_WIDE:
        document["metadata"]["namespace"] = namespace
    elif namespace and document["kind"] == "Namespace":
        document["metadata"]["name"] = namespace
    for image in kustomization.get("images", []):
        _refuse_others(image, {"name", "newName", "newTag"})
        _set_image(document, image)


def _set_image(node: Any, image: Document) -> None:
    if isinstance(node, list):
        for item in node:
            _set_image(item, image)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "image" and value.partition(":")[0] == image["name"]:
                node[key] = f"{image.get('newName', image['name'])}:{image['newTag']}"
            else:
                _set_image(value, image)


def _patch(patch: Document, folder: Path, documents: list[Document]) -> None:
    _refuse_others(patch, {"path", "target"})
    changes: list[Any] = load(folder / patch["path"])
    if "target" not in patch:
        for change in changes:
            merge(only(documents, change["kind"], change["metadata"]["name"]), change)
        return
    _refuse_others(patch["target"], {"kind", "name"})
    for step in changes[0]:
        _step(only(documents, **patch["target"]), step)


def _step(target: Any, step: Document) -> None:
    """Take one step of a JSON patch (RFC 6902)."""
    *parents, last = step["path"].strip("/").split("/")
    for parent in parents:
        target = target[int(parent) if isinstance(target, list) else parent]
    if isinstance(target, list) and last == "-" and step["op"] == "add":
        target.append(step["value"])
        return
    key: Any = int(last) if isinstance(target, list) else last
    if step["op"] == "add" and isinstance(target, dict):
        target[key] = step["value"]
        return
    try:
        before = target[key]
    except LookupError:
        raise Unknown(f"nothing at {step['path']}") from None
    if step["op"] == "test" and before == step["value"]:
        return
    if step["op"] != "replace":
        raise Unknown(f"{step['op']} {step['path']}")
    target[key] = step["value"]


def merge(target: Document, change: Document) -> None:
    """Merge *change* into *target* as a strategic merge patch does."""
    for key, value in change.items():
        if key.startswith("$"):
            raise Unknown(key)
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        elif isinstance(value, list) and key in MERGE_KEYS and key in target:
            _merge_items(target[key], value, MERGE_KEYS[key])
        else:
            target[key] = value


def _merge_items(items: list[Document], changes: list[Document], key: str) -> None:
    for change in changes:
        known = [item for item in items if item[key] == change[key]]
        if not known:
            raise Unknown(f"a new {key} {change[key]}: where would it go?")
        merge(known[0], change)


def _unshared(node: Any) -> Any:
    """Return a copy in which no part occurs twice: a patch of one place must not change another."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(item) for item in node] if isinstance(node, list) else node


if __name__ == "__main__":
    sys.stdout.write(yaml.safe_dump_all(render(Path(sys.argv[1])), sort_keys=False))
