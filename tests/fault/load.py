"""
People on threads of their own who use both replicas without a pause and write everything down.

They register and log in first (:func:`move_in`), and Redis gets copies of their tokens (:func:`show_up`).
"""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.fault.asking import BROKEN, PATIENCE_S, Answer, answered, ask, verdict
from tests.fault.ledger import ACCEPTED_FOR_S, Account, Findings, Held, Ledger
from tests.processes import wait_until
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.fault.world import World
    from tests.rig import Service

PAUSE_S = 0.03
MOST_SESSIONS, LEAST_SESSIONS = 4, 2
#: What people do, and how often: hashing a password costs a core for 0.05 s.
HABITS = {
    "check": 30, "check_revoked": 16, "read": 10, "write": 14, "read_numbers": 8, "refresh": 10,
    "log_out": 6, "log_in": 5, "mistype": 1, "register": 1, "change_password": 1,
}  # fmt: skip


@dataclass(slots=True)
class Person:
    """Acts for one account, one step at a time, and judges every answer by the ledger."""

    account: Account
    replicas: Sequence[Service]
    dice: random.Random
    findings: Findings = field(default_factory=Findings)
    #: How often they ask, each time somebody else, before they take no answer or a 503 for one.
    tries: int = 1
    #: How many connections broke before the last answer: each may have done what was asked.
    doubts: int = 0

    def act(self) -> None:
        """Do one thing."""
        (habit,) = self.dice.choices(list(HABITS), list(HABITS.values()))
        unfinished = next((held for held in self.account.sessions if held.is_leaving), None)
        if unfinished is not None and self.dice.random() < 0.5:
            self._leave(unfinished)
        else:
            getattr(self, habit)()

    def settle(self) -> None:
        """Ask again for what was not answered; to be called when everything works."""
        for held in list(self.account.sessions):
            if held.is_leaving:
                self._leave(held)
            elif held.unsure_since_s is not None:
                self._renew(held)

    def find_password(self) -> None:
        """Try the passwords until one is right, where a change was not answered."""
        account = self.account
        if len(account.passwords) == 1:
            return
        right = []
        for password in account.passwords:
            answer = answered(partial(self._try, password))
            if self.findings.judge("passwords", answer, 200, 401) and answer.status == 200:
                right.append(password)
                account.done["logged_in"].add()
                account.strays += 1
        if len(right) != 1:
            self.findings.lost.append(f"password: {len(right)} of {len(account.passwords)} are right")
        account.passwords = right or account.passwords

    def check(self) -> None:
        """A token of a living session, as a gateway asks."""
        if (held := self._a_session()) is None:
            return
        answer = self._ask("GET", "/v1/auth/verify", token=self.dice.choice(held.access[-2:]))
        if self.findings.judge("check", answer, 200):
            self._own("check", answer.headers.get("X-Auth-User-Id"))
            if answer.headers.get("X-Auth-Session-Id") != held.session_id:
                self.findings.foreign.append("check names another session")

    def check_revoked(self) -> None:
        """A token that was revoked; nobody may accept it."""
        if not self.account.revoked:
            return
        revoked = self.dice.choice(self.account.revoked)
        is_over = revoked.must_be_refused()
        answer = self._ask("GET", "/v1/auth/verify", token=revoked.access)
        self.findings.judge("revoked", answer, 401, *(() if is_over else (200,)))
        if is_over and answer.status == 200:
            self.findings.accepted.append(f"session {revoked.session_id}")

    def read(self) -> None:
        """The profile: the person's own."""
        if (held := self._a_session()) is None:
            return
        answer = self._ask("GET", "/v1/me", token=held.access[-1])
        if self.findings.judge("read", answer, 200):
            self._own("read", answer.body["id"])
            if answer.body["email"] != self.account.email:
                self.findings.foreign.append(f"read {answer.body['email']}")

    def write(self) -> None:
        """The next number into their preferences, beside their id."""
        if (held := self._a_session()) is None:
            return
        account = self.account
        account.number += 1
        bag = {"owner": account.id, "number": account.number}
        answer = self._ask("PUT", "/v1/me/preferences", token=held.access[-1], json=bag)
        if self.findings.judge("write", answer, 200):
            account.numbers, account.numbered_at_s = {account.number}, time.monotonic()
            account.done["user_changed"].add(doubts=self.doubts)
            self._own("write", answer.body["owner"])
        else:
            account.numbers.add(account.number)
            account.done["user_changed"].unanswered += 1

    def read_numbers(self) -> None:
        """The preferences: the person's own, with the last number."""
        if (held := self._a_session()) is None:
            return
        is_settled = time.monotonic() - self.account.numbered_at_s > ACCEPTED_FOR_S
        answer = self._ask("GET", "/v1/me/preferences", token=held.access[-1])
        if not self.findings.judge("preferences", answer, 200):
            return
        number = answer.body.get("number", 0)
        if number:
            self._own("preferences", answer.body.get("owner"))
        if number not in self.account.numbers:
            said = f"preferences say {number}, not {self.account.numbers}"
            (self.findings.lost if is_settled else self.findings.stale).append(said)

    def refresh(self) -> None:
        """The next pair of a session."""
        if (held := self._a_session()) is not None:
            self._renew(held)

    def log_in(self) -> None:
        """One more session, while there are few."""
        account = self.account
        if len(account.sessions) >= MOST_SESSIONS or len(account.passwords) > 1:
            return
        answer = self._log_in(account.passwords[0])
        if self.findings.judge("login", answer, 200):
            account.done["logged_in"].add(doubts=self.doubts)
            account.strays += self.doubts
            self._own("login", subject(answer.body["access_token"]))
            pair = answer.body
            account.sessions.append(Held(pair["session_id"], [pair["access_token"]], pair["refresh_token"]))
        else:
            account.done["logged_in"].unanswered += 1
            account.strays += 1

    def mistype(self) -> None:
        """A password for an address of nobody's, which is counted once."""
        answer = self._log_in("not the password at all", email=self.account.mistyped)
        done = self.account.done["mistyped"]
        if self.findings.judge("mistyped", answer, 401):
            done.add(doubts=self.doubts)
        else:
            done.unanswered += 1 + self.doubts

    def log_out(self) -> None:
        """The end of a session, while there are more."""
        if len(self.account.sessions) > LEAST_SESSIONS and (held := self._a_session()) is not None:
            self._leave(held)

    def register(self) -> None:
        """Somebody new; after no answer the same once more, which must not make two of them."""
        newcomers = self.account.newcomers
        email = next((known for known, ident in newcomers.items() if ident is None), None)
        again = email is not None and self.dice.random() < 0.5
        address = email if again and email is not None else f"{uuid4().hex}@example.com"
        answer = self._ask("POST", "/v1/auth/register", json={"email": address, "password": PASSWORD})
        if self.findings.judge("register", answer, 201, *((409,) if again or self.doubts else ())):
            newcomers[address] = answer.body["id"] if answer.status == 201 else "somebody"
        else:
            newcomers.setdefault(address, None)

    def change_password(self) -> None:
        """A new one, from the session that stays; the others end."""
        account = self.account
        held = self._a_session()
        if held is None or len(account.passwords) > 1 or self.tries > 1:
            return  # a second try of one that was done is a wrong password
        new = f"a passphrase of many words {uuid4().hex}"
        words = {"current_password": account.passwords[0], "new_password": new}
        answer = self._ask("POST", "/v1/me/password", token=held.access[-1], json=words)
        others = [other for other in account.sessions if other is not held]
        done = account.done["password_changed"]
        if self.findings.judge("password", answer, 204, 202):
            leaving = sum(other.is_leaving for other in others)
            done.acknowledged += 1 + len(others) - leaving
            done.unanswered += leaving + account.strays
            account.passwords, account.strays = [new], 0
            for other in others:
                account.ended(other, is_complete=answer.status == 204)
        else:
            done.unanswered += 1 + len(others) + account.strays
            account.passwords.append(new)
            for other in others:
                account.lose_sight_of(other)

    def _renew(self, held: Held) -> None:
        if held.is_too_unsure():
            self.account.lose_sight_of(held)  # it would look like theft, and rightly
            return
        answer = self._ask("POST", "/v1/auth/refresh", json={"refresh_token": held.refresh})
        if self.findings.judge("refresh", answer, 200):
            held.rotations, held.unsure_since_s = held.rotations + 1, None
            held.access.append(answer.body["access_token"])
            held.refresh = answer.body["refresh_token"]
            self._own("refresh", subject(held.access[-1]))
        elif held.unsure_since_s is None:
            held.unsure_since_s = time.monotonic() - answer.seconds

    def _leave(self, held: Held) -> None:
        """Log out, and again until it is acknowledged."""
        done = self.account.done["logout"]
        answer = self._ask("POST", "/v1/auth/logout", token=held.access[-1])
        if self.findings.judge("logout", answer, 204, 202):
            done.acknowledged += 1
            done.unanswered -= held.is_leaving
            self.account.ended(held, is_complete=answer.status == 204)
        elif not held.is_leaving:
            held.is_leaving = True
            done.unanswered += 1

    def _a_session(self) -> Held | None:
        """One whose end has not been asked for."""
        staying = [held for held in self.account.sessions if not held.is_leaving]
        return self.dice.choice(staying) if staying else None

    def _try(self, password: str) -> Answer:
        """Log in; what is not answered may have made a session."""
        answer = self._log_in(password)
        if answer.status not in {200, 401}:
            self.account.done["logged_in"].unanswered += 1
            self.account.strays += 1
        return answer

    def _log_in(self, password: str, *, email: str | None = None) -> Answer:
        words = {"email": email or self.account.email, "password": password}
        return self._ask("POST", "/v1/auth/login", json=words)

    def _own(self, what: str, ident: str | None) -> None:
        if ident != self.account.id:
            self.findings.foreign.append(f"{what} of {ident}")

    def _ask(self, method: str, path: str, **options: Any) -> Answer:
        first = self.dice.randrange(len(self.replicas))
        self.doubts = -1
        for number in range(self.tries):
            replica = self.replicas[(first + number) % len(self.replicas)]
            answer = ask(replica, method, path, **options)
            self.doubts += 1
            if answer.status not in (BROKEN, 503):
                break
        return answer


def subject(access: str) -> str:
    """Whom a token is about, by its own words."""
    return claim(access, "sub")


def claim(access: str, name: str) -> str:
    """What a token says of itself."""
    payload = access.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return str(claims[name])


def settle(ledger: Ledger, replicas: Sequence[Service]) -> Findings:
    """Have everybody ask again for what was not answered."""
    findings = Findings()
    for account in ledger:
        Person(account, replicas, random.Random(0), findings).settle()
    return findings


@contextmanager
def load(ledger: Ledger, replicas: Sequence[Service], *, seed: str, tries: int = 1) -> Iterator[Findings]:
    """Keep everybody busy while the block runs; what they found is complete after it."""
    over = threading.Event()
    people = [
        Person(account, replicas, random.Random(f"{seed} {number}"), tries=tries)
        for number, account in enumerate(ledger)
    ]
    together = Findings()

    def live(person: Person) -> None:
        while not over.wait(PAUSE_S):
            person.act()

    with ThreadPoolExecutor(len(people)) as pool:
        lives = [pool.submit(live, person) for person in people]
        try:
            yield together
        finally:
            over.set()
    for person, done in zip(people, lives, strict=True):
        done.result()
        together.add(person.findings)


HOUSEHOLD = 4


def move_in(service: Service) -> Ledger:
    """Register everybody and log each of them in twice."""
    ledger: Ledger = []
    for _ in range(HOUSEHOLD):
        account = _signed_up(service)
        person = Person(account, [service], random.Random(0))
        wait_until(partial(_is_at_home, person), timeout_s=PATIENCE_S, what="two sessions")
        assert person.findings.faults() == {}
        ledger.append(account)
    return ledger


def _signed_up(service: Service) -> Account:
    """Somebody new, under an address that was asked for once."""
    emails = []

    def sign_up() -> Answer:
        emails.append(f"{uuid4().hex}@example.com")
        return ask(service, "POST", "/v1/auth/register", json={"email": emails[-1], "password": PASSWORD})

    answer = answered(sign_up)
    account = Account(emails[-1], answer.body["id"], [PASSWORD])
    account.done["registered"].acknowledged += 1
    return account


def _is_at_home(person: Person) -> bool:
    """Log in once more, unless there are enough sessions."""
    if len(person.account.sessions) < LEAST_SESSIONS:
        person.log_in()
    return len(person.account.sessions) == LEAST_SESSIONS


def show_up(world: World, ledger: Ledger, *more: str) -> None:
    """See that Redis has a copy of every token that the load may use, and of the tokens in *more*."""
    used = [access for account in ledger for held in account.sessions for access in held.access[-2:]]
    wait_until(partial(_have_copies, world, [*used, *more]), timeout_s=PATIENCE_S, what="copies")


def _have_copies(world: World, tokens: Sequence[str]) -> bool:
    """Check each, which brings its copy back where it is lost."""
    assert {verdict(world.ahead, token) for token in tokens} == {200}
    with world.redis_admin() as client:
        copies = client.mget([f"authsvc:v1:auth:token:{claim(token, 'jti')}" for token in tokens])
    return None not in copies
