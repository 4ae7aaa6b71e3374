"""Keys that are rotated under a running service, and the clients that must not notice."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, Self

import jwt

from authsvc.domain.tokens.keys import Algorithm, generate
from tests.processes import HOST
from tests.rig import HOPELESS_S, PASSWORD

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig import Service

#: One request in so many is a login: each costs a hash.
LOGIN_EVERY = 100
#: A client takes a new token when the old one has so little of its life left (seconds).
REFRESH_AT_S = 0.4
#: The kernel deals connections to the workers: with so many, hardly any client knows one worker alone.
CONNECTIONS = 4


def add_key(folder: Path, algorithm: Algorithm, *, age_s: float) -> Path:
    """A key in *folder* that is *age_s* seconds old by its name; it appears whole."""
    name, pem = generate(algorithm, datetime.now(UTC) - timedelta(seconds=age_s))
    unfinished = folder / f"{name}.new"
    unfinished.write_bytes(pem)
    return unfinished.rename(folder / name)


class Client:
    """
    Somebody with an account: checks tokens, refreshes in time, logs in now and then.

    A token is used for *life_s* seconds, whatever its own life is.
    """

    def __init__(self, service: Service, email: str, *, life_s: float) -> None:
        assert service.register(email).status_code == 201
        self.email = email
        self.life_s = life_s
        self.connections = [
            HTTPConnection(HOST, service.port, timeout=HOPELESS_S) for _ in range(CONNECTIONS)
        ]
        self.outcomes: Counter[str] = Counter()
        #: Algorithms of the tokens that were issued, and when the last token of each is over.
        self.issued: Counter[str] = Counter()
        self.over_at: dict[str, float] = {}
        self.living: list[tuple[str, float]] = []
        self.refresh_token = ""
        self.turn = 0
        #: When the request that is under way, or was the last, was begun.
        self.began_at = 0.0

    def act(self) -> None:
        """One request; what it came to is in ``outcomes``, as ``check 200``."""
        self.turn += 1
        self.began_at = now = time.time()
        self.living = [(token, until) for token, until in self.living if until > now]
        if not self.refresh_token or self.turn % LOGIN_EVERY == 0:
            self._obtain("login", {"email": self.email, "password": PASSWORD})
        elif not self.living or self.living[-1][1] - now < REFRESH_AT_S:
            self._obtain("refresh", {"refresh_token": self.refresh_token})
        else:
            token, _ = random.choice(self.living)
            self._ask("check", "GET", "/v1/auth/verify", headers={"Authorization": f"Bearer {token}"})

    def _obtain(self, what: str, body: dict[str, str]) -> None:
        pair = self._ask(what, "POST", f"/v1/auth/{what}", body=json.dumps(body))
        if "access_token" not in pair:
            return
        self.refresh_token, token = pair["refresh_token"], pair["access_token"]
        until = time.time() + self.life_s
        header = jwt.get_unverified_header(token)
        self.living.append((token, until))
        self.issued[header["alg"]] += 1
        self.over_at[header["alg"]] = max(until, self.over_at.get(header["alg"], 0))
        published = self._ask("keys", "GET", "/.well-known/jwks.json")["keys"]
        self.outcomes["published" if header["kid"] in {key["kid"] for key in published} else "missing"] += 1

    def _ask(self, what: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        options.setdefault("headers", {"Content-Type": "application/json"})
        connection = random.choice(self.connections)
        try:
            connection.request(method, path, **options)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            connection.close()
            self.outcomes[f"{what} {type(error).__name__}"] += 1
            return {"keys": []}
        self.outcomes[f"{what} {answer.status}"] += 1
        return json.loads(body) if body else {}


class Load:
    """Clients that act *per_s* times a second, all together, while the block runs."""

    def __init__(self, service: Service, *, clients: int, per_s: float, life_s: float) -> None:
        self.clients = [
            Client(service, f"client{number}@example.com", life_s=life_s) for number in range(clients)
        ]
        self.pause_s = clients / per_s
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in self.clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * HOPELESS_S)
            assert not thread.is_alive()
        for client in self.clients:
            for connection in client.connections:
                connection.close()

    @property
    def outcomes(self) -> Counter[str]:
        """What everything came to."""
        return sum((client.outcomes for client in self.clients), Counter())

    @property
    def failures(self) -> Counter[str]:
        """Everything that was not as it must be."""
        good = (" 200", "published")
        return Counter({what: count for what, count in self.outcomes.items() if not what.endswith(good)})

    def everybody_has(self, algorithm: Algorithm) -> bool:
        """True when each client was given a token of *algorithm*."""
        return all(client.issued[algorithm] for client in self.clients)

    def forget(self, algorithm: Algorithm) -> None:
        """Ask anew who has a token of *algorithm*: another key of it is about to sign."""
        for client in self.clients:
            client.issued.pop(algorithm, None)

    def is_over(self, algorithm: Algorithm) -> bool:
        """True when no client uses a token of *algorithm* any more, nor has one under way to the service."""
        return all(client.over_at.get(algorithm, 0) < client.began_at for client in self.clients)

    def _run(self, client: Client) -> None:
        due = time.monotonic() + random.random() * self.pause_s
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            client.act()
            # Behind time, it does not catch up in a burst.
            due = max(due + self.pause_s, time.monotonic())
