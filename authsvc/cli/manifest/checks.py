"""Problems of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from authsvc.cli.manifest.documents import Container, Manifest, Pod, mapping, sequence, words
from authsvc.cli.manifest.environment import (
    Environment,
    NotMounted,
    environment_of,
    file_at,
    is_mounted,
)
from authsvc.server import ServerTimings
from authsvc.settings import VARIABLES, Settings, SettingsError, all_names
from authsvc.settings.checks import ignored_names

#: The default of Kubernetes.
DEFAULT_GRACE_S = 30
#: Paths that each probe may use: a probe that restarts pods must not depend on a store.
PROBES = {
    "startupProbe": ("/v1/health/startup", "/v1/health/live"),
    "livenessProbe": ("/v1/health/live",),
    "readinessProbe": ("/v1/health/ready",),
}
#: Placeholder of a value that only the cluster knows.
UNKNOWN_FILE = "/dev/null"
KNOWN_FOLDER = "/"


def problems(pod: Pod, manifest: Manifest, warn: Callable[[str], None]) -> Iterator[str]:
    """All problems of *pod*, each with its place; *warn* is called for what has no effect."""
    containers = pod.own_containers()
    if pod.spec.get("enableServiceLinks") is not False:
        yield f"{pod.title}: enableServiceLinks is not false: a Service named redis would write REDIS_PORT"
    for container in containers:
        environment = environment_of(container, pod, manifest)
        given = {name: value or "" for name, value in environment.values.items()}
        for warning in ignored_names(given, all_names()):
            warn(f"{container.where}: {warning}")
        found = [*environment.problems, *_settings_problems(environment, container, pod, manifest)]
        if container.is_server():
            ports = _Ports.of(container, environment)
            found += [*ports.problems(), *_probe_problems(container, ports), *_grace_problems(container, pod)]
            yield from _service_problems(pod, ports, manifest)
        yield from (f"{container.where}: {problem}" for problem in found)


def _settings_problems(
    environment: Environment, container: Container, pod: Pod, manifest: Manifest
) -> Iterator[str]:
    """
    The problems that ``config check`` would find in the container, without those that only the cluster knows.
    """
    env = {name: value or "" for name, value in environment.values.items()}
    unknown = {name for name, value in environment.values.items() if value is None}
    for variable in VARIABLES.values():
        path = env.get(variable.file_name)
        if not variable.kind.is_secret or not path:
            continue
        try:
            text = file_at(path, container, pod, manifest)
        except NotMounted as nothing:
            yield f"{variable.file_name}: {nothing}"
            text = None
        _put_file(variable.name, text, env, unknown)
    if folder := env.get("JWT_KEYS_DIR"):
        if not is_mounted(folder, container, pod):
            yield f"JWT_KEYS_DIR: nothing is mounted at {folder}"
        env["JWT_KEYS_DIR"] = KNOWN_FOLDER
    yield from _refusals(env, unknown, is_open=environment.is_open)


def _put_file(name: str, text: str | None, env: dict[str, str], unknown: set[str]) -> None:
    """
    Give the settings the content of the file in place of its path; a variable that is set twice stays so.
    """
    if text is None:
        env[f"{name}_FILE"] = UNKNOWN_FILE
        unknown.add(name)
    elif name not in env:
        del env[f"{name}_FILE"]
        env[name] = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _refusals(env: dict[str, str], unknown: set[str], *, is_open: bool) -> Iterator[str]:
    try:
        Settings.from_env(env)
    except SettingsError as error:
        for problem in error.problems:
            is_of_the_cluster = problem.name in unknown and problem.message.startswith("is empty")
            may_come = is_open and problem.message.startswith("is missing")
            if not is_of_the_cluster and not may_come:
                yield str(problem)


@dataclass(frozen=True, slots=True)
class _Ports:
    """The ports of a container by name, and the two that the service listens on; None is unknown."""

    named: dict[str, int]
    public: int | None
    metrics: int | None

    @classmethod
    def of(cls, container: Container, environment: Environment) -> _Ports:
        ports = sequence(container.spec.get("ports"), f"{container.where}: ports")
        named = {
            str(port.get("name", port.get("containerPort"))): port.get("containerPort") for port in ports
        }
        numbers = {name: port for name, port in named.items() if isinstance(port, int)}
        declared = (VARIABLES["PORT"], VARIABLES["METRICS_PORT"])
        listening = (environment.values.get(each.name, each.default) for each in declared)
        return cls(numbers, *(int(text) if text and text.isdecimal() else None for text in listening))

    def number(self, port: object) -> int | None:
        """The number of a port that is given by name or number; None for an unknown name."""
        return port if isinstance(port, int) else self.named.get(str(port))

    def problems(self) -> Iterator[str]:
        """Declared ports on which the service does not listen."""
        known = {self.public, self.metrics}
        for name, number in self.named.items():
            if None not in known and number not in known:
                yield f"port {name} is {number}; the service listens on {self.public} and {self.metrics}"


def _probe_problems(container: Container, ports: _Ports) -> Iterator[str]:
    for kind, paths in PROBES.items():
        get = mapping(mapping(container.spec.get(kind), kind).get("httpGet"), f"{kind}: httpGet")
        if not get:
            continue
        if get.get("path") not in paths:
            yield f"{kind} asks {get.get('path')}; expected {' or '.join(paths)}"
        if ports.public is not None and ports.number(get.get("port")) != ports.public:
            yield f"{kind} asks port {get.get('port')}; PORT is {ports.public}"


def _grace_problems(container: Container, pod: Pod) -> Iterator[str]:
    grace_s = pod.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
    graceful_s = ServerTimings().graceful_s
    needed_s = _pre_stop_s(container) + graceful_s
    if not isinstance(grace_s, int) or grace_s < needed_s:
        yield (
            f"terminationGracePeriodSeconds is {grace_s}; expected {needed_s:g} or more:"
            f" preStop, and {graceful_s} s for what is under way"
        )


def _pre_stop_s(container: Container) -> float:
    """Seconds that preStop waits, as far as the manifest shows."""
    hook = mapping(mapping(container.spec.get("lifecycle"), "lifecycle").get("preStop"), "preStop")
    slept = mapping(hook.get("sleep"), "sleep").get("seconds")
    command = words(mapping(hook.get("exec"), "exec").get("command"), "preStop: command")
    text = str(slept) if slept is not None else command[-1] if command[:1] == ["sleep"] else ""
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0


def _service_problems(pod: Pod, ports: _Ports, manifest: Manifest) -> Iterator[str]:
    """Services that lead to a port on which the service does not listen."""
    listening = {ports.public, ports.metrics}
    for title, declared in manifest.services(pod):
        for port in declared:
            target = port.get("targetPort", port.get("port"))
            if None not in listening and ports.number(target) not in listening:
                leads = f"port {target} leads to {ports.number(target)}"
                yield f"{pod.title}: {title}: {leads}, which is not PORT or METRICS_PORT"
