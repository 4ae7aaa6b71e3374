"""The rendered overlays, executed: what a kubelet would start, with the manifest's environment and timing."""

from __future__ import annotations

import hashlib
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import requests

from authsvc.settings import all_names
from tests.e2e.kubernetes.kubelet import Failed, Pod, make_secrets
from tests.manifests import OVERLAYS, only, render
from tests.processes import wait_until
from tests.rig import HOPELESS_S, PASSWORD
from tests.servers import RedisServer, drop_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.kubernetes.kubelet import Drain
    from tests.manifests import Document

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Logins that are under way when the signal comes.
LOGINS = 4
#: What docs/kubernetes.md makes for the development overlay.
ACL = """user default on nopass -@all +ping
user authsvc on #{digest} ~authsvc:* &authsvc:* +@all -@admin -@dangerous +info
"""


def own_redis(documents: list[Document], folder: Path) -> tuple[RedisServer, str]:
    """Return the Redis that the development overlay brings along, with its own options, and its URL."""
    password = secrets.token_hex(24)
    acl = folder / "users.acl"
    acl.write_text(ACL.format(digest=hashlib.sha256(password.encode()).hexdigest()))
    (container,) = only(documents, "Deployment", "redis")["spec"]["template"]["spec"]["containers"]
    arguments = [str(acl) if word.endswith(".acl") else word for word in container["args"]]
    assert arguments[0] == "redis-server"
    server = RedisServer(*arguments[1:])
    return server, f"redis://authsvc:{password}@{server.host}:{server.port}/0"


@pytest.fixture(scope="module")
def pods(postgres_server, tmp_path_factory) -> Iterator[dict[str, Pod]]:
    """Start one pod of each overlay, side by side, on stores of its own."""
    with ExitStack() as stack:
        made = {}
        for name, folder in OVERLAYS.items():
            documents, place = render(folder), tmp_path_factory.mktemp(name)
            server, redis_url = own_redis(documents, place) if name == "dev" else (RedisServer(), "")
            stack.enter_context(server)
            database_url = postgres_server.create_database()
            stack.callback(drop_database, postgres_server.url, database_url)
            given = make_secrets(database_url, redis_url or server.url, place)
            made[name] = stack.enter_context(Pod(documents, given, place))
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(lambda pod: pod.initialise(), made.values()))
            list(side_by_side.map(lambda pod: pod.start(), made.values()))
        yield made


@pytest.fixture(params=OVERLAYS)
def pod(request, pods) -> Pod:
    """Return each overlay's pod in turn."""
    running: Pod = pods[request.param]
    return running


def url(pod: Pod, port: str = "http") -> str:
    """Return a port of a pod, by the name that the manifest gives it."""
    (number,) = (each["containerPort"] for each in pod.container["ports"] if each["name"] == port)
    return f"http://{pod.address}:{number}"


def test_every_variable_and_every_file_is_there(pod):
    """Init container and container get settings alone, and no path among them leads to nowhere."""
    for container in (*pod.spec["initContainers"], pod.container):
        env = pod.environment(container)

        assert env.keys() <= all_names()
        assert [
            name for name in env if name.endswith("_FILE") and not (pod.folder / env[name]).is_file()
        ] == []


def test_a_name_that_is_missing_stops_the_pod(pods):
    """As it would in a cluster: a ConfigMap that is not there, a variable that comes from elsewhere."""
    pod = pods["prod"]
    from_nowhere = pod.container | {"envFrom": [{"configMapRef": {"name": "authsvc"}}]}
    from_elsewhere = pod.container | {"env": [{"name": "PORT", "valueFrom": {"fieldRef": {}}}]}

    for container in (from_nowhere, from_elsewhere):
        with pytest.raises(Failed):
            pod.environment(container)


def test_the_service_does_its_work(pod):
    """Started, probed as declared, and in its own way: users, tokens, figures, each on its port."""
    account = {"email": "ada@example.com", "password": PASSWORD}
    registered = requests.post(f"{url(pod)}/v1/auth/register", json=account, timeout=HOPELESS_S)
    pair = requests.post(f"{url(pod)}/v1/auth/login", json=account, timeout=HOPELESS_S).json()
    headers = {"Authorization": f"Bearer {pair['access_token']}"}

    verified = requests.get(f"{url(pod)}/v1/auth/verify", headers=headers, timeout=HOPELESS_S)
    scraped = requests.get(f"{url(pod, 'metrics')}/metrics", timeout=HOPELESS_S)

    assert (registered.status_code, verified.status_code, scraped.status_code) == (201, 200, 200)
    assert 'authsvc_logins_total{result="ok"} 1.0' in scraped.text
    assert list((pod.folder / "tmp" / "metrics").glob("*.db")) != []
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        # One of them may come too late on a busy machine; it takes several in a row.
        wait_until(partial(pod.probe, kind), what=kind)


def test_a_pod_that_must_go_loses_no_request_and_keeps_to_its_time(pods):
    """After preStop it still serves; after SIGTERM it ends what is under way, and nobody is killed."""
    with ThreadPoolExecutor() as side_by_side:
        drains = list(side_by_side.map(drained_under_load, pods.values()))

    for drain, statuses in drains:
        assert statuses == [200] * LOGINS
        assert drain.status == 0
        assert 5 <= drain.took_s < drain.grace_s


def drained_under_load(pod: Pod) -> tuple[Drain, list[int]]:
    """Stop *pod* with logins sent right before the signal; how it went, and their statuses."""
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connected(pod))) for _ in range(LOGINS)]
        drain = pod.stop(lambda: list(map(log_in, connections)))
        return drain, [connection.getresponse().status for connection in connections]


def connected(pod: Pod) -> HTTPConnection:
    """Return a connection to *pod* that has been used already."""
    connection = HTTPConnection(urlsplit(url(pod)).netloc, timeout=HOPELESS_S)
    connection.request("GET", "/v1/health/live")
    connection.getresponse().read()
    return connection


def log_in(connection: HTTPConnection) -> None:
    """Ask for a login; the answer waits in *connection*."""
    body = json.dumps({"email": "ada@example.com", "password": PASSWORD})
    connection.request("POST", "/v1/auth/login", body, {"Content-Type": "application/json"})
