"""What the machine of ``test_model`` shares: how an answer is judged, and the rules that break stores."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.e2e.lines import NO_BODY, Line
from tests.e2e.model import Access, Account, Login
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.estate import Estate
    from tests.e2e.lines import Reply


class People(RuleBasedStateMachine):
    """Everybody in one life, what they ask for, and whether the answer may be what it is."""

    estate: ClassVar[Estate]
    #: In all lives together.
    lives: ClassVar[int] = 0
    steps: ClassVar[int] = 0

    root: Login

    def __init__(self) -> None:
        super().__init__()
        type(self).lives += 1
        self.random = Random(0)
        self.name = uuid4().hex
        #: The admin is the first, and nothing happens to them.
        self.people: list[Account] = []

    def count_step(self) -> None:
        """One more; perhaps the last fault is over by now."""
        type(self).steps += 1
        self.estate.settle()

    def admit(self, email: str) -> Login:
        """The admin, logged in."""
        reply = self.estate.ask("POST", "/v1/auth/login", body={"email": email, "password": PASSWORD})
        assert reply.status == 200, reply
        pair = reply.json
        profile = self.estate.ask("GET", "/v1/me", token=pair["access_token"]).json
        self.people.append(Account(profile["id"], email, roles=("user", "admin")))
        return self.people[0].begin(pair)

    def person(self, who: int) -> Account:
        """One of those who signed up."""
        return self.people[1 + who % (len(self.people) - 1)]

    def as_user(self, access: Access, method: str, path: str, *, body: object = NO_BODY) -> Reply | None:
        """What the owner of *access* is answered; None if they were refused for it, as they must be."""
        reply = self.estate.ask(method, path, token=access.text, body=body)
        return reply if self.passed(access, reply) else None

    def as_admin(
        self, account: Account, method: str, suffix: str, good: int, *, body: object = NO_BODY
    ) -> bool:
        """True if the admin did it to *account*."""
        reply = self.estate.ask(
            method, f"/v1/users/{account.id}{suffix}", token=self.root.newest.text, body=body
        )
        gone = self.refused(reply, "not_found", unless=account.exists, status=404)
        return not gone and self.took(reply, good, revokes=True)

    def took(self, reply: Reply, good: int, *, revokes: bool = False) -> bool:
        """True if *reply* says that it was done; else it is a 503 that a fault explains."""
        assert reply.status in self.estate.allows(good, revokes=revokes), reply
        return reply.status != 503

    def refused(self, reply: Reply, code: str, *, unless: bool, status: int = 401) -> bool:
        """False if *unless*; else True, and *reply* says so, or is a 503 that a fault explains."""
        if unless:
            return False
        if self.took(reply, status):
            assert reply.code == code, reply
        return True

    def passed(self, access: Access, reply: Reply) -> bool:
        """False if *access* is dead, which *reply* must say."""
        if access.is_live:
            return True
        assert reply.status in self.estate.allows_check(401), reply
        assert reply.status == 503 or reply.code == "token_invalid", reply
        return False

    def tokens(self) -> list[Access]:
        """Every access token of this life."""
        return [token for one in self.people for login in one.logins for token in login.access_tokens]

    def show(self, tokens: Iterable[Access]) -> None:
        """Every worker says of each of *tokens* what is true."""
        for token in tokens:
            good = 200 if token.is_live else 401
            for reply in self.estate.everywhere(partial(Line.verify, token=token.text)):
                assert reply.status in self.estate.allows_check(good), (reply, good)
                if reply.status == 200:
                    assert reply.headers["x-auth-user-id"] == token.login.account.id
                    assert reply.headers["x-auth-session-id"] == token.login.id
                    assert reply.headers["x-auth-roles"] == ",".join(token.login.account.roles)


class Faults(People):
    """What happens to the stores; each fault stays until a rule or the end of the life ends it."""

    @precondition(lambda self: self.estate.stores.has_redis)
    @rule()
    def flush_redis(self) -> None:
        """Nobody notices."""
        self.estate.stores.flush()

    @precondition(lambda self: self.estate.stores.has_redis)
    @rule()
    def break_redis_connections(self) -> None:
        """New connections prove nothing."""
        self.estate.stores.break_connections()

    @precondition(lambda self: self.estate.stores.has_redis)
    @rule(stays_down=st.booleans())
    def kill_redis(self, *, stays_down: bool) -> None:
        """For some steps, or for a moment."""
        self.estate.stores.kill_redis()
        if not stays_down:
            self.estate.stores.start_redis()

    @precondition(lambda self: not self.estate.stores.has_redis)
    @rule()
    def start_redis(self) -> None:
        """Empty."""
        self.estate.stores.start_redis()

    @precondition(lambda self: self.estate.stores.has_redis)
    @rule()
    def save_redis(self) -> None:
        """For later."""
        self.estate.stores.dumps = [self.estate.stores.redis.save_dump()]

    @precondition(lambda self: self.estate.stores.dumps)
    @rule()
    def restore_redis(self) -> None:
        """What was revoked since then is not in it."""
        self.estate.stores.restore_redis()

    @precondition(lambda self: self.estate.stores.has_sql)
    @rule(stays_down=st.booleans())
    def stop_sql(self, *, stays_down: bool) -> None:
        """For some steps, or for a moment."""
        self.estate.stores.stop_sql()
        if not stays_down:
            self.estate.stores.start_sql()

    @precondition(lambda self: not self.estate.stores.has_sql)
    @rule()
    def start_sql(self) -> None:
        """With everything that it acknowledged."""
        self.estate.stores.start_sql()
