"""Clients and their tokens in a world: what an operator does with them, and what checks say meanwhile."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jwt

from tests.processes import wait_until
from tests.rig import run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.fault.world import World
    from tests.rig import Service

CHECKS = 20
CHECK = "/v1/auth/verify-machine?scope=orders:read"


def clients(world: World, *arguments: str) -> Any:
    """What ``authsvc clients`` prints, with the service's own settings."""
    folder = world.service.log.parent
    done = run_command("clients", *arguments, env=world.service.env, folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


@dataclass(frozen=True, slots=True)
class Machine:
    """A client with two secrets, each ready to be dropped."""

    world: World
    client_id: str
    secrets: tuple[str, str] = field(repr=False)

    @classmethod
    def made_in(cls, world: World) -> Machine:
        """A new one."""
        made = clients(world, "create", "billing", "--scope", "orders:read")
        second = clients(world, "rotate", made["client_id"])
        return cls(world, made["client_id"], (made["client_secret"], second["client_secret"]))

    def token(self, number: int) -> str:
        """A token of the secret with that number."""
        answer = self.post(number, "token", grant_type="client_credentials")
        return str(answer.json()["access_token"])

    def post(self, number: int, path: str, **form: str) -> Any:
        """One request with the secret of that number, which succeeds."""
        auth = self.client_id, self.secrets[number]
        answer = self.world.service.call("POST", f"/v1/oauth2/{path}", data=form, auth=auth)
        assert answer.status_code == 200, answer.text
        return answer

    def drop_secret_of(self, token: str) -> None:
        """Drop the secret that got *token*."""
        secret_id = jwt.decode(token, options={"verify_signature": False})["sid"]
        clients(self.world, "drop-secret", self.client_id, secret_id)


def verdicts(world: World, shown: str) -> Counter[int]:
    """Of 20 checks by each worker of each replica."""

    def by_one_worker() -> Counter[int]:
        return Counter(world_at.ask("GET", CHECK, token=shown).status for _ in range(CHECKS))

    found: Counter[int] = Counter()
    for replica in world.replicas:
        world_at = world.at(replica)
        for counts in replica.from_each_worker(by_one_worker):
            found += counts
    return found


def of_every_worker(world: World, status: int) -> Counter[int]:
    """What :func:`verdicts` finds where all agree."""
    return Counter({status: CHECKS * sum(len(replica.workers()) for replica in world.replicas)})


@dataclass(slots=True)
class Watch:
    """Checks tokens at each replica without a pause; an answer that must not be is in *wrong*."""

    tokens: dict[str, str] = field(repr=False)
    #: Names of those that are about to end, and of those whose end was acknowledged.
    ending: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rounds: Counter[int] = field(default_factory=Counter)

    def end(self, name: str, act: Callable[[], object]) -> None:
        """Let *act* end the token *name*: from its answer on nobody may accept it."""
        self.ending.add(name)
        act()
        self.dead.add(name)
        self.go_on()

    def go_on(self) -> None:
        """Wait until each replica has been asked about every token 20 times more."""
        before = Counter(self.rounds)
        wait_until(
            lambda: all(self.rounds[port] >= before[port] + CHECKS for port in self.rounds), what="checks"
        )

    def follow(self, world: World, replica: Service, over: threading.Event) -> None:
        """Ask *replica* until it is *over*."""
        asked = world.at(replica)
        while not over.is_set():
            for name, token in self.tokens.items():
                was_dead = name in self.dead
                status = asked.ask("GET", CHECK, token=token).status
                self._judge(name, status, was_dead=was_dead)
            self.rounds[replica.port] += 1

    def _judge(self, name: str, status: int, *, was_dead: bool) -> None:
        self.answers[f"{name} {status}"] += 1
        expected = {401} if was_dead else {200, 401} if name in self.ending else {200}
        if status not in expected | {503}:
            self.wrong.append(f"{name} {status} after {self.answers}")


@contextmanager
def watching(world: World, tokens: dict[str, str]) -> Iterator[Watch]:
    """Check *tokens*, by name, at both replicas."""
    watch, over = Watch(tokens), threading.Event()
    watch.rounds.update({replica.port: 0 for replica in world.replicas})
    threads: Sequence[threading.Thread] = [
        threading.Thread(target=watch.follow, args=(world, replica, over)) for replica in world.replicas
    ]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        over.set()
        for thread in threads:
            thread.join()
