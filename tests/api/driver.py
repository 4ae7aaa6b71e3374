"""The application in this process, its clock, and the people who use it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Barrier
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import jwt

from authsvc.app import create_app
from authsvc.domain.values.emails import Email
from authsvc.settings import Settings
from authsvc.wiring import build
from tests.processes import wait_until
from tests.rig import PASSWORD
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from werkzeug.test import TestResponse

    from authsvc.wiring.timings import Timings

#: Builds an application with settings of the caller's; ``sqlite=True`` for the other database.
MakeApi: TypeAlias = "Callable[..., Api]"

T = TypeVar("T")
S = TypeVar("S")

#: Requests in flight at once in races: fewer than the hashing queue and its threads take.
THREADS = 16

_numbers = count(1)


class TickingClock:
    """Real time plus whatever the test has ticked; or, once stopped, a time that only ticks move."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        return (self._stopped_at or datetime.now(UTC)) + self._ahead

    def stop(self) -> None:
        """Stand still from now on."""
        self._stopped_at = datetime.now(UTC).replace(microsecond=0)

    def tick(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self._ahead += timedelta(seconds=seconds)


class Api:
    """
    One application and short words for the requests that most tests begin with.

    It waits for the stores for as long as it takes: deadlines are for the tests that are about them.
    """

    def __init__(self, env: Mapping[str, str], *, timings: Timings = UNHURRIED) -> None:
        self.env = env
        self.clock = TickingClock()
        self.application = create_app(build(Settings.from_env(env), clock=self.clock, timings=timings))
        self.services = self.application.services
        try:
            self.prove_redis()
        except BaseException:
            self.close()
            raise

    def prove_redis(self) -> None:
        """Compare Redis with SQL, so that checks are answered by Redis for the rest of the test."""
        # A single comparison that fails is in the ordinary on a busy machine.
        wait_until(self.services.compare, timeout_s=60, what="Redis proven")

    def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        ip: str = "127.0.0.1",
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        """One request by a client of its own, as *token* from *ip*."""
        bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
        if "json" in options:
            # By hand: to the test client None means no body, not ``null``.
            options |= {"data": json.dumps(options.pop("json")), "content_type": "application/json"}
        client = self.application.flask.test_client(use_cookies=False)
        environ = {"REMOTE_ADDR": ip, **options.pop("environ", {})}
        return client.open(
            path,
            method=method,
            headers={**bearer, **(headers or {})},
            environ_overrides=environ,
            buffered=True,  # files are read to their end and closed, as the server does
            **options,
        )

    def post(self, path: str, body: object, **options: Any) -> TestResponse:
        """POST *body* as JSON."""
        return self.call("POST", path, json=body, **options)

    def send_raw(self, path: str, data: bytes, content_type: str | None = "application/json") -> TestResponse:
        """POST *data* as they are."""
        return self.call("POST", path, data=data, content_type=content_type)

    def register(self, email: str, password: str = PASSWORD, **fields: Any) -> TestResponse:
        """Sign up."""
        return self.post("/v1/auth/register", {"email": email, "password": password, **fields})

    def log_in(
        self, email: str, password: str = PASSWORD, *, ip: str = "127.0.0.1", **fields: Any
    ) -> TestResponse:
        """Log in."""
        return self.post("/v1/auth/login", {"email": email, "password": password, **fields}, ip=ip)

    def refresh(self, token: str, **options: Any) -> TestResponse:
        """Trade a refresh token."""
        return self.post("/v1/auth/refresh", {"refresh_token": token}, **options)

    def log_out(self, *, access: str | None = None, refresh: str | None = None) -> TestResponse:
        """Log out by either token, or by both."""
        body: dict[str, Any] = {} if refresh is None else {"json": {"refresh_token": refresh}}
        return self.call("POST", "/v1/auth/logout", token=access, **body)

    def verify(self, token: str) -> int:
        """The status that a gateway gets."""
        return self.call("GET", "/v1/auth/verify", token=token).status_code

    def someone(self, **fields: Any) -> Person:
        """A new user, logged in."""
        email = new_email()
        user = self.register(email, **fields)
        assert user.status_code == 201, user.text
        return Person(api=self, id=json_of(user)["id"], email=email).log_in()

    def an_admin(self) -> Person:
        """A new user who was made an admin by the operator, logged in."""
        person = self.someone()
        self.services.users.set_roles(Email(person.email), ("admin",))
        return person.log_in()

    def close(self) -> None:
        """Let threads and connections go."""
        self.services.close()


@dataclass(slots=True, kw_only=True)
class Person:
    """A user with the tokens of one of their sessions."""

    api: Api
    id: str
    email: str
    password: str = PASSWORD
    pair: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def access(self) -> str:
        """The access token."""
        return str(self.pair["access_token"])

    @property
    def refresh_token(self) -> str:
        """The refresh token."""
        return str(self.pair["refresh_token"])

    @property
    def session_id(self) -> str:
        """The session of both."""
        return str(self.pair["session_id"])

    def log_in(self, **fields: Any) -> Person:
        """The same user with a session more."""
        return self._with(self.api.log_in(self.email, self.password, **fields))

    def refresh(self) -> Person:
        """The same session with the next pair of tokens."""
        return self._with(self.api.refresh(self.refresh_token))

    def call(self, method: str, path: str, **options: Any) -> TestResponse:
        """One request with their access token."""
        return self.api.call(method, path, token=self.access, **options)

    def is_accepted(self) -> bool:
        """A gateway and a view agree on their access token: both take it, or both refuse it."""
        statuses = self.api.verify(self.access), self.call("GET", "/v1/me").status_code
        assert statuses in {(200, 200), (401, 401)}
        return statuses == (200, 200)

    def claims(self) -> dict[str, Any]:
        """What their access token says."""
        return jwt.decode(self.access, options={"verify_signature": False})

    def _with(self, answer: TestResponse) -> Person:
        assert answer.status_code == 200, answer.text
        return Person(
            api=self.api, id=self.id, email=self.email, password=self.password, pair=json_of(answer)
        )


def new_email() -> str:
    """An address that nobody in this run has."""
    return f"person{next(_numbers)}@example.com"


def at_once(work: Callable[[S], T], items: Iterable[S], *, threads: int = THREADS) -> list[T]:
    """What *work* makes of each of *items*, by so many *threads*, which begin together."""
    gate = Barrier(threads)
    with ThreadPoolExecutor(threads, initializer=gate.wait, initargs=(60,)) as pool:
        # A pool starts a thread for each job while none is idle: the gate keeps them all busy at first.
        return list(pool.map(work, items))


def json_of(answer: TestResponse) -> dict[str, Any]:
    """The object in an answer."""
    body = answer.json
    assert isinstance(body, dict), answer.text
    return body


def code_of(answer: TestResponse) -> str:
    """The stable code of a refusal."""
    assert answer.content_type == "application/problem+json", answer.text
    return str(json_of(answer)["code"])
