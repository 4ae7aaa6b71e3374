"""Three replicas of the rendered manifest behind nginx, replaced one by one under load: nobody notices."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import jwt
import pytest
import requests

from authsvc.domain.tokens.keys import generate
from tests.api.second_factors import FACTORS
from tests.e2e.kubernetes.kubelet import Pod, make_secrets
from tests.manifests import OVERLAYS, kinds, render
from tests.processes import wait_until
from tests.rig import HOPELESS_S, PASSWORD
from tests.servers import RedisServer, drop_database
from tests.servers.binaries import BinaryMissing, nginx_binary
from tests.servers.nginx import Nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.kubernetes.kubelet import Drain, Secrets

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REPLICAS = 3
USERS = 3
#: Within the 60 a minute that a session may ask for.
REFRESH_EVERY_S = 1.1
CHECK_EVERY_S = 0.1
#: Within the 60 tokens a minute that a client may ask for, with those that the test asks each pod for.
TOKEN_EVERY_S = 2.0
#: The new key signs so long after it was shown to the pods, which look every 2 s.
SIGNS_AFTER_S = 8
SIGNING_AGE_S = 300
PORT = 8080
#: No second try: what one replica fails has failed.
SERVERS = """
include replicas.conf;
server {
    listen 80;
    location / {
        proxy_pass http://replicas;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_next_upstream off;
    }
}
"""


class Gateway(Nginx):
    """nginx in front of the pods that it is told of."""

    def __init__(self, pods: list[Pod]) -> None:
        super().__init__(SERVERS, {})
        self._write(pods)

    def point_at(self, pods: list[Pod]) -> None:
        """Send requests to *pods* from now on; those under way go on."""
        self._write(pods)
        self._running().send_signal(signal.SIGHUP)

    def _write(self, pods: list[Pod]) -> None:
        servers = "".join(f"server {pod.address}:{PORT} max_fails=0;" for pod in pods)
        (self.folder / "replicas.conf").write_text(f"upstream replicas {{ {servers} keepalive 16; }}")


class User:
    """Somebody with one session who refreshes it again and again, and whose tokens a gateway checks."""

    def __init__(self, url: str, email: str) -> None:
        self.url = url
        self.outcomes: Counter[str] = Counter()
        account = {"email": email, "password": PASSWORD}
        assert requests.post(f"{url}/v1/auth/register", json=account, timeout=HOPELESS_S).status_code == 201
        self.pair = requests.post(f"{url}/v1/auth/login", json=account, timeout=HOPELESS_S).json()
        self.first = self.latest = self.pair["access_token"]

    @property
    def acts(self) -> tuple[tuple[Callable[[], None], float], ...]:
        """What they do, and the pauses between."""
        return (self.refresh, REFRESH_EVERY_S), (self.check, CHECK_EVERY_S)

    def refresh(self) -> None:
        """Trade the refresh token for a new pair."""
        answer = self._ask("refresh", "POST", json={"refresh_token": self.pair["refresh_token"]})
        if answer is not None and answer.ok:
            self.pair = answer.json()
            self.latest = self.pair["access_token"]

    def check(self) -> None:
        """Check the session's first token, which the old key signed, and its latest one."""
        for token in (self.first, self.latest):
            self._ask("verify", "GET", headers={"Authorization": f"Bearer {token}"})

    def kid(self) -> str:
        """Return the key that signed the latest token."""
        return str(jwt.get_unverified_header(self.latest)["kid"])

    def level(self) -> str | None:
        """Return the level that the latest token says, if it does."""
        found: str | None = jwt.decode(self.latest, options={"verify_signature": False}).get("acr")
        return found

    def _ask(self, name: str, method: str, **options: object) -> requests.Response | None:
        try:
            answer = requests.request(method, f"{self.url}/v1/auth/{name}", timeout=HOPELESS_S, **options)  # type: ignore[arg-type]
        except requests.RequestException as error:
            self.outcomes[f"{name} {type(error).__name__}"] += 1
            return None
        self.outcomes[f"{name} {answer.status_code}"] += 1
        return answer


class Machine:
    """A client with tokens of its own, and the right to introspect them; asks at *url* all the time."""

    def __init__(self, url: str, pod: Pod) -> None:
        made = pod.run(
            *(
                "clients",
                "create",
                "orders",
                "--scope",
                "orders:read",
                "--may",
                "token",
                "--may",
                "introspect",
            )
        )
        self.url = url
        self.secret = tuple(json.loads(made)[name] for name in ("client_id", "client_secret"))
        self.outcomes: Counter[str] = Counter()
        self.token = ""

    @property
    def acts(self) -> tuple[tuple[Callable[[], None], float], ...]:
        """What they do, and the pauses between."""
        return (self.ask, TOKEN_EVERY_S), (self.check, CHECK_EVERY_S)

    def ask(self) -> None:
        """Ask for a token, whoever answers."""
        self.outcomes[f"token {self.ask_at(self.url)}"] += 1

    def check(self) -> None:
        """Check the latest token in every way, whoever answers."""
        if self.token:
            self.outcomes.update(f"{way} {said}" for way, said in self.answers_at(self.url).items())

    def ask_at(self, url: str) -> int:
        """The status of asking there for a token, which is used from now on."""
        form = {"grant_type": "client_credentials"}
        answer = requests.post(f"{url}/v1/oauth2/token", data=form, auth=self.secret, timeout=HOPELESS_S)
        if answer.ok:
            self.token = answer.json()["access_token"]
        return answer.status_code

    def answers_at(self, url: str) -> dict[str, object]:
        """What is said there of the latest token."""
        token = self.token
        bearer = {"Authorization": f"Bearer {token}"}
        checks = ("verify", "verify-machine", "verify-any")
        answers: dict[str, object] = {
            name: requests.get(f"{url}/v1/auth/{name}", headers=bearer, timeout=HOPELESS_S).status_code
            for name in checks
        }
        asked = requests.post(
            f"{url}/v1/oauth2/introspect", data={"token": token}, auth=self.secret, timeout=HOPELESS_S
        )
        return answers | {"active": asked.json()["active"]}


class Traffic:
    """What *callers* do until it is over, each act in a thread."""

    def __init__(self, *callers: User | Machine) -> None:
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=each) for caller in callers for each in caller.acts
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, act: Callable[[], None], pause_s: float) -> None:
        while not self._over.wait(pause_s):
            act()


def key(*, age_s: float) -> tuple[str, str]:
    """Return name and text of a signing key that is *age_s* seconds old."""
    name, pem = generate("ES256", datetime.now(UTC) - timedelta(seconds=age_s))
    return name, pem.decode()


@pytest.fixture
def nginx_is_here() -> None:
    """Skip where there is no nginx, but never in CI."""
    try:
        nginx_binary()
    except BinaryMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def secret_data(nginx_is_here, postgres_server, tmp_path) -> Iterator[Secrets]:
    """Yield the Secrets of a new installation, whose one key is an hour old."""
    database_url = postgres_server.create_database()
    with RedisServer() as server:
        data = make_secrets(database_url, server.url, tmp_path)
        data["authsvc-keys"] = dict([key(age_s=3600)])
        yield data
    drop_database(postgres_server.url, database_url)


@pytest.fixture
def cluster(secret_data, tmp_path) -> Iterator[Cluster]:
    """Yield three ready pods behind nginx."""
    with Cluster(secret_data, tmp_path) as started:
        yield started


class Cluster:
    """A Deployment's pods, and the gateway that knows which of them are ready."""

    def __init__(self, secret_data: Secrets, folder: Path) -> None:
        self.secret_data = secret_data
        self.folder = folder
        self.documents = render(OVERLAYS["prod"])
        self.stack = ExitStack()
        self.drains: list[Drain] = []

    def __enter__(self) -> Self:
        with self.stack:
            pods = [self.new_pod() for _ in range(REPLICAS)]
            pods[0].initialise()
            with ThreadPoolExecutor() as side_by_side:
                self.pods = list(side_by_side.map(Pod.start, pods))
            self.gateway = self.stack.enter_context(Gateway(self.pods))
            self.stopping = self.stack.enter_context(ThreadPoolExecutor())
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def switch(self, **settings: str) -> None:
        """Give later pods other *settings*, as a changed ConfigMap does."""
        self.documents = deepcopy(self.documents)
        (config,) = (
            each for each in kinds(self.documents, "ConfigMap") if settings.keys() & each["data"].keys()
        )
        config["data"] |= settings

    def new_pod(self) -> Pod:
        """Return one more pod, not started."""
        return self.stack.enter_context(Pod(self.documents, self.secret_data, self.folder))

    def show_key(self, name: str, text: str) -> None:
        """Add a key to the Secret: every pod, and every later one, has it beside the others."""
        self.secret_data["authsvc-keys"][name] = text
        for pod in self.pods:
            pod.show("authsvc-keys", self.secret_data["authsvc-keys"])

    def roll(self) -> Iterator[int]:
        """Replace one pod after the other; each goes when the new one is ready, and takes its time."""
        going = []
        for number, old in enumerate(list(self.pods)):
            fresh = self.new_pod()
            fresh.initialise()
            self.pods.append(fresh.start())
            self.gateway.point_at(self.pods)
            self.pods.remove(old)
            # At once, as in a cluster: the pod is told to stop while the gateway still knows it.
            going.append(self.stopping.submit(old.stop))
            self.gateway.point_at(self.pods)
            yield number
        self.drains = [future.result() for future in going]


#: docs/upgrade.md: what a pod says of machines and their tokens before and after the switch.
OFF = {"token": 404, "verify": 403, "verify-machine": 404, "verify-any": 404, "active": True}
ON = OFF | {"token": 200, "verify-machine": 200, "verify-any": 200}


def test_nobody_notices_an_update_a_new_key_second_factors_and_machines(cluster):
    """
    No request fails and nobody is logged out, while every pod and the signing key are replaced.

    The new pods have second factors and machines on.  Their tokens say levels, and old and new ones take
    each other's; what concerns machines is answered by each pod as its own settings have it.
    """
    users = [User(cluster.gateway.url, f"user{number}@example.com") for number in range(USERS)]
    machine = Machine(cluster.gateway.url, cluster.pods[0])
    old_kids = {user.kid() for user in users}
    assert not any(user.level() for user in users)
    cluster.switch(**FACTORS, MACHINES="on")
    said: list[list[dict[str, object]]] = []

    with Traffic(*users, machine):
        for number in cluster.roll():
            if number == 0:
                cluster.show_key(*key(age_s=SIGNING_AGE_S - SIGNS_AFTER_S))
            urls = [f"http://{pod.address}:{PORT}" for pod in reversed(cluster.pods)]
            said.append([{"token": machine.ask_at(url), **machine.answers_at(url)} for url in urls])
        wait_until(lambda: old_kids.isdisjoint(user.kid() for user in users), what="new key")
        for user in users:
            user.check()

    outcomes = sum((user.outcomes for user in users), Counter[str]())
    assert outcomes.keys() == {"refresh 200", "verify 200"}, outcomes
    assert min(outcomes.values()) > USERS
    assert len({user.kid() for user in users} | old_kids) == 2
    assert {user.level() for user in users} == {"aal1"}
    assert said == [[ON] * (number + 1) + [OFF] * (REPLICAS - 1 - number) for number in range(REPLICAS)]
    expected = {f"{way} {answer}" for answers in (OFF, ON) for way, answer in answers.items()}
    # Which pods nginx asks is chance; what each says is compared above.
    assert machine.outcomes.keys() <= expected, machine.outcomes
    assert sum(machine.outcomes.values()) > USERS
    assert [drain.status for drain in cluster.drains] == [0] * REPLICAS
    assert all(drain.took_s < drain.grace_s for drain in cluster.drains)
