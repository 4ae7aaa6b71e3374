"""The environment and the mounted files of a container, as the kubelet provides them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from authsvc.cli.manifest.documents import Container, Manifest, Node, Pod, mapping, sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

#: ``$(NAME)`` in a value; ``$$(NAME)`` stands for itself.
_REFERENCE = re.compile(r"\$(\$\([^)]*\))|\$\((?P<name>[^)]*)\)")


class NotMounted(Exception):
    """Nothing is at a path in a container; the message says why."""


@dataclass(slots=True)
class Environment:
    """Variables by name; None is a value that only the cluster knows."""

    values: dict[str, str | None] = field(default_factory=dict)
    #: True if a Secret that is not in the file may add variables.
    is_open: bool = False
    problems: list[str] = field(default_factory=list)


def environment_of(container: Container, pod: Pod, manifest: Manifest) -> Environment:
    """The environment of *container*: all of ``envFrom`` first, then ``env``, later over earlier."""
    made = Environment()
    for source in sequence(container.spec.get("envFrom"), f"{container.where}: envFrom"):
        _take_all(source, pod, manifest, made)
    for item in sequence(container.spec.get("env"), f"{container.where}: env"):
        _take_one(item, pod, manifest, made)
    return made


def _take_all(source: Node, pod: Pod, manifest: Manifest, made: Environment) -> None:
    prefix = str(source.get("prefix") or "")
    for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
        reference = mapping(source.get(key), key)
        if not reference:
            continue
        entries = manifest.entries(kind, reference.get("name"), pod.namespace)
        if entries is not None:
            made.values |= {f"{prefix}{name}": value for name, value in entries.items()}
        elif kind == "Secret":
            made.is_open = True
        elif not reference.get("optional"):
            made.problems.append(f"envFrom: there is no {kind} {reference.get('name')} in the file")


def _take_one(item: Node, pod: Pod, manifest: Manifest, made: Environment) -> None:
    name = str(item.get("name"))
    origin = mapping(item.get("valueFrom"), f"valueFrom of {name}")
    if not origin:
        made.values[name] = _expanded(name, str(item.get("value") or ""), made)
        return
    for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if key in origin:
            _take_key(name, kind, mapping(origin[key], key), (pod, manifest), made)
            return
    made.values[name] = None  # of the pod itself, as its address


def _take_key(name: str, kind: str, reference: Node, where: tuple[Pod, Manifest], made: Environment) -> None:
    pod, manifest = where
    entries = manifest.entries(kind, reference.get("name"), pod.namespace)
    key = str(reference.get("key"))
    if entries is None and kind == "Secret":
        made.values[name] = None
    elif entries is not None and key in entries:
        made.values[name] = entries[key]
    elif not reference.get("optional"):
        made.problems.append(f"{name}: there is no {key} in {kind} {reference.get('name')}")


def _expanded(name: str, text: str, made: Environment) -> str | None:
    """*text* with its references replaced; None if only the cluster knows one of them."""
    named = [match["name"] for match in _REFERENCE.finditer(text) if match["name"] is not None]
    unset = [each for each in named if each not in made.values]
    if unset and not made.is_open:
        made.problems.append(f"{name} refers to $({unset[0]}), which is not set before it")
    if any(made.values.get(each) is None for each in named):
        return None
    return _REFERENCE.sub(lambda match: match[1] or str(made.values[match["name"]]), text)


def file_at(path: str, container: Container, pod: Pod, manifest: Manifest) -> str | None:
    """The text of the file at *path*; None if only the cluster knows it.  Raises NotMounted."""
    volume, key = _mounted(path, container, pod)
    for kind, name_key in (("configMap", "name"), ("secret", "secretName")):
        if kind in volume:
            source = mapping(volume[kind], kind)
            entries = manifest.entries(
                "Secret" if kind == "secret" else "ConfigMap", source.get(name_key), pod.namespace
            )
            return _entry(key, source, entries, path)
    return None


def is_mounted(path: str, container: Container, pod: Pod) -> bool:
    """True if *path* is in a volume."""
    try:
        _mounted(path, container, pod)
    except NotMounted:
        return False
    return True


def _entry(key: str, source: Node, entries: Mapping[str, str | None] | None, path: str) -> str | None:
    items = sequence(source.get("items"), "items")
    if items:
        keys = {str(item.get("path")): str(item.get("key")) for item in items}
        if key not in keys:
            raise NotMounted(f"{path} is not among the items of the volume")
        key = keys[key]
    if entries is None:
        return None
    if key not in entries:
        raise NotMounted(f"{path}: the volume has no {key}")
    return entries[key]


def _mounted(path: str, container: Container, pod: Pod) -> tuple[Node, str]:
    """The volume that contains *path*, and the path within it; the deepest mount counts."""
    mounts = list(_mounts_above(path, container))
    if not mounts:
        raise NotMounted(f"nothing is mounted at {path}")
    deepest, mount = max(mounts, key=lambda pair: len(pair[0].parts))
    volume = pod.volume(str(mount.get("name")))
    if volume is None:
        raise NotMounted(f"{path}: there is no volume {mount.get('name')}")
    inside = PurePosixPath(str(mount.get("subPath") or "")) / PurePosixPath(path).relative_to(deepest)
    return volume, str(inside)


def _mounts_above(path: str, container: Container) -> Iterator[tuple[PurePosixPath, Node]]:
    for mount in sequence(container.spec.get("volumeMounts"), f"{container.where}: volumeMounts"):
        place = PurePosixPath(str(mount.get("mountPath")))
        if PurePosixPath(path).is_relative_to(place):
            yield place, mount
