"""
What the server's main loop answers by itself: token checks, and reads of one's own profile.

Both are one read of Redis, many requests with one.  The lane only answers with *yes* and what there is;
all else is answered by a thread, by :class:`~authsvc.api.verify.CheckAnswers` and the views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final, NamedTuple, Protocol

from authsvc.api.frame.bodies import JSON, json_body
from authsvc.api.frame.context import request_id_from
from authsvc.api.frame.hooks import HEADERS, log_answer
from authsvc.api.schemas.accounts import UserView
from authsvc.api.verify import CHECK_PATHS, demand_of, granted
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import IndexAnswer
from authsvc.domain.tokens.access import REMEMBERED, AccessToken, Token
from authsvc.domain.tokens.checks import PolledIndex, PolledKeys, PolledReads, TokenChecks
from authsvc.domain.tokens.claims import bearer_token
from authsvc.domain.tokens.demands import Demand
from authsvc.domain.tokens.keys import KeyRing, KeySource
from authsvc.domain.users import User, UserDirectory
from authsvc.observability.logs import bind_request

#: The caller's own account; read here, changed by views.
PROFILE_PATH: Final = "/v1/me"
#: Stands for the request id in an answer that is made in advance; no header holds it.
_MARK = "\0"


class Request(Protocol):
    """What a request says, as it was sent."""

    path: str
    query: str
    authorization: bytes
    origin: bytes
    traceparent: bytes


class Answer(NamedTuple):
    """An answer but for how every one begins: up to the request id, and from it on."""

    before_id: bytes
    behind_id: bytes


class Prepared:
    """A token whose signature held, with all that an answer about it on one path needs."""

    __slots__ = (
        "answer",
        "begins_s",
        "ends_s",
        "good_answer",
        "index_keys",
        "is_admitted",
        "is_profile",
        "keys",
        "token",
    )

    def __init__(self, token: Token, path: str, index_keys: PolledKeys, window_s: tuple[int, int]) -> None:
        self.token = token
        self.keys = token.keys
        self.index_keys = index_keys
        self.begins_s, self.ends_s = window_s
        #: The last answer of Redis that proved it to be good: the same answer proves it again.
        self.good_answer: IndexAnswer | None = None
        self.is_profile = path == PROFILE_PATH
        #: True if it is good for a request that asks for nothing more, and is to be answered here.
        self.is_admitted: bool
        #: Of a check; that of a profile is made from what is read.
        self.answer = Answer(b"", b"")
        if self.is_profile:
            self.is_admitted = isinstance(token, AccessToken) and "user" in token.roles
        else:
            admitted = CHECK_PATHS[path]
            self.is_admitted = Demand(admitted=admitted).is_met_by(token, self.begins_s)
            self.answer = _split(granted(token, admitted, _MARK))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReads:
    """Answers ``GET /v1/me`` byte for byte as its view does."""

    users: UserDirectory
    #: Counts a request that was answered without the application: the seconds that it took.
    count: Callable[[float], None]
    #: True where pages of other origins may call: answers say then that they vary with the origin.
    is_shared: bool
    _view: UserView = field(default_factory=UserView, init=False, repr=False)

    def answer(self, user: User) -> Answer:
        """With the profile of *user*."""
        shown = self._view.dump(self.users.get(user.id, read=user))
        body = json_body(shown)
        headers = [
            ("Content-Type", JSON),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", _MARK),
            *HEADERS.items(),
            *([("Vary", "Origin")] if self.is_shared else []),
        ]
        before_id, behind_id = _split(headers)
        return Answer(before_id, behind_id + body)

    def note(self, request_id: str, took_s: float) -> None:
        """Log and count one request."""
        bind_request(request_id)
        log_answer("GET", PROFILE_PATH, 200, took_s)
        bind_request("")
        self.count(took_s)


@dataclass(slots=True, kw_only=True)
class CheckLane:
    """See the module's docstring; what Redis proves is answered, and nothing here waits."""

    checks: TokenChecks
    index: PolledIndex
    ring: KeySource
    #: Decides about a trace, by the text of a ``traceparent``.
    sample: Callable[[str], bool]
    metrics_port: int
    #: None where users are not cached.
    profiles: ProfileReads | None
    #: Where gateways ask.
    check_paths: Sequence[str]
    has_levels: bool = False
    has_machines: bool = False
    #: What is answered here: methods by path.
    methods: Mapping[str, Sequence[str]] = field(init=False)
    _recent: KeyRing | None = field(default=None, init=False)
    _now_s: float = field(default=0.0, init=False)
    #: By path, then by the whole header.
    _known: dict[str, dict[bytes, Prepared]] = field(init=False, repr=False)
    #: Remembers by position alone, in half the time.
    _demand_of: Callable[[str, str], Demand | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.methods = dict.fromkeys(self.check_paths, ("GET", "HEAD"))
        if self.profiles is not None:
            self.methods |= {PROFILE_PATH: ("GET",)}
        self._known = {path: {} for path in self.methods}
        self._demand_of = lru_cache(maxsize=256)(
            partial(demand_of, has_levels=self.has_levels, has_machines=self.has_machines)
        )

    @property
    def reads(self) -> PolledReads:
        """What the loop watches."""
        return self.index.reads

    def open(self) -> bool:
        """Begin a round of the server's loop; True if there is something to be asked."""
        ring = self.ring.recent()
        if ring is not None and ring is not self._recent:
            for known in self._known.values():
                known.clear()
            self._recent = ring
        self._now_s = self.checks.clock().timestamp()
        return ring is not None and self.index.is_open()

    def prepare(self, request: Request) -> Prepared | None:
        """The request of a token that is known, in time, and has what is asked for."""
        path, authorization = request.path, request.authorization
        known = self._known[path].get(authorization) or self._learn(authorization, path)
        if known is None or not known.begins_s <= self._now_s < known.ends_s:
            return None
        if known.is_profile:
            # Pages of other origins get more headers, and the line in the log names the trace.
            is_plain = not (request.query or request.origin or request.traceparent)
            return known if known.is_admitted and is_plain else None
        if not request.query:
            return known if known.is_admitted else None
        demand = self._demand_of(path, request.query)
        return known if demand is not None and demand.is_met_by(known.token, self._now_s) else None

    def ask(self, asked: Sequence[Prepared]) -> bool:
        """Begin to ask about all of them; False if that cannot be."""
        try:
            self.index.ask([prepared.index_keys for prepared in asked])
        except StoreUnavailable:
            return False
        return True

    def answers(self, asked: Sequence[Prepared]) -> list[Answer | None] | None:
        """The answer to each that is proven to be good; None while nothing is known of any."""
        try:
            found = self.index.answers()
        except StoreUnavailable:
            return [None] * len(asked)
        if found is None:
            return None
        answers = [
            prepared.answer if answer == prepared.good_answer or self._is_good(prepared, answer) else None
            for prepared, answer in zip(asked, found.tokens, strict=True)
        ]
        for place, raw in found.users.items():
            if answers[place] is not None:
                answers[place] = self._profile(asked[place], raw)
        self.checks.count_good(len(answers) - answers.count(None))
        return answers

    def text(self, prepared: Prepared, answer: Answer, given_id: bytes, took_s: float) -> bytes:
        """*answer* under the client's request id if that is sane, else a new one; noted as answered."""
        request_id = request_id_from(given_id.decode("latin-1"))
        if prepared.is_profile and self.profiles is not None:
            self.profiles.note(request_id, took_s)
        return b"".join((answer.before_id, request_id.encode("ascii"), answer.behind_id))

    def upkeep(self) -> None:
        """Load new signing keys before a check needs them; may block."""
        self.ring.refresh()

    def _is_good(self, prepared: Prepared, answer: IndexAnswer) -> bool:
        is_good = self.checks.is_good(prepared.keys, answer)
        if is_good:
            prepared.good_answer = answer
        return is_good

    def _profile(self, prepared: Prepared, raw: bytes | None) -> Answer | None:
        """The profile in a proven copy; None where there is none that can be read here."""
        if raw is None or self.profiles is None:
            return None
        user = self.index.read_user(prepared.keys.user_id, raw)
        if user is None:
            prepared.is_admitted = False  # nor is it asked for here again: large copies stay large
            return None
        return self.profiles.answer(user)

    def _learn(self, authorization: bytes, path: str) -> Prepared | None:
        """A token whose signature is remembered, by the whole header that it is in."""
        text = _plain_bearer(authorization)
        token = self.checks.reader.recall(text, self._recent) if text and self._recent else None
        if token is None:
            return None
        remembered = self._known[path]
        while len(remembered) >= REMEMBERED:
            del remembered[next(iter(remembered))]
        index_keys = self.index.keys_of(token.keys, with_user=path == PROFILE_PATH)
        window_s = self.checks.reader.window_s(token)
        known = remembered[authorization] = Prepared(token, path, index_keys, window_s)
        return known


def _plain_bearer(authorization: bytes) -> str | None:
    """The token in a header with exactly one space: other spellings are left to the threads."""
    text = bearer_token(authorization.decode("latin-1"))
    return text if text and len(authorization) == len("Bearer ") + len(text) else None


def _split(headers: Sequence[tuple[str, str]]) -> Answer:
    """The head with *headers*, around the mark that is in one of them."""
    text = "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    before, _, behind = text.partition(_MARK)
    return Answer(before.encode("latin-1"), behind.encode("latin-1"))
