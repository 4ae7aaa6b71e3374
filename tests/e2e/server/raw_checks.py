"""
Requests by the byte: token checks and reads of the profile as clients send them.

Some only look like one, or hide behind one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TypeAlias

Pieces: TypeAlias = tuple[bytes, ...]

PATH = b"/v1/auth/verify"
PROFILE = b"/v1/me"
METHODS = (
    b"GET",
    b"GET",
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"get",
    b"G=T",
    b"GET ",
    b"",
)
TARGETS = (
    PATH,
    PATH,
    PATH + b"?role=user",
    PATH + b"?role=admin",
    PATH + b"?role=admin&role=user",
    PATH + b"?acr=aal1",
    PATH + b"?acr=aal1&max_age=99999&role=user",
    PATH + b"?acr=aal2",
    PATH + b"?acr=aal1&acr=phr",
    PATH + b"?max_age=99999",
    PATH + b"?max_age=0",
    PATH + b"?acr=aal3",
    PATH + b"?max_age=1e3",
    PATH + b"-machine",
    PATH + b"-machine?scope=orders:read",
    PATH + b"-machine?scope=orders/write&acr=aal2",
    PATH + b"-machine/orders",
    PATH + b"-any",
    PATH + b"-any?role=user",
    PATH + b"-any?role=admin&scope=orders:read",
    PATH + b"?scope=orders:read",
    PATH + b"?",
    PATH + b"?role=",
    PATH + b"?role=user%20",
    PATH + b"?%72ole=admin",
    PATH + b"?role=user;role=admin",
    PATH + b"?x=" + b"y" * 1200,
    PATH + b"?x=" + b"y" * 4200,
    PATH + b"/",
    PATH + b"/orders?role=admin",
    PATH + b"x",
    PATH + b"#role",
    PATH + b"?a#b",
    b"/v1/auth/verif%79",
    b"/v1/auth/./verify",
    b"/v1//auth/verify",
    b"http://x" + PATH,
    b"//x" + PATH,
    b"*",
    PATH + b"\x00",
    PATH + b"?\xff",
    PATH.upper(),
    b"/v1/me",
    b"/v1/me",
    b"/v1/me?x=1",
    b"/v1/me/",
    b"/v1/me#x",
    b"//v1/me",
    b"/metrics",
)
VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"HTTP/11",
    b"",
)
#: Fields beside those that make a check one; each may come once more, and in any place.
FIELDS = (
    b"Accept: */*",
    b"User-Agent: curl/8.5.0",
    b"X-Request-Id: gateway-1",
    b"X-Request-Id: not sane",
    b"x-request-id: ",
    b"X-REQUEST-ID:  padded\t",
    b"X-Request-Id: " + b"a" * 65,
    b"Connection: keep-alive",
    b"Connection: close",
    b"Connection: Keep-Alive, Upgrade",
    b"connection: CLOSE",
    b"Connection:",
    b"Connection: te",
    b"Keep-Alive: timeout=5",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 0, 0",
    b"Content-Length: 00",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Expect: 100-continue",
    b"Expect: nothing",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABk",
    b"Content-Type: text/plain",
    b"X-Forwarded-For: 10.0.0.1, 192.0.2.7:1234",
    b"X-Forwarded-Proto: https",
    b"X_Forwarded_For: 10.0.0.1",
    b"X-Forwarded-Host: evil.test",
    b"Forwarded: for=10.0.0.1",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"traceparent: nonsense",
    b"Script_Name: /x",
    b"Script-Name: /x",
    b"Host: y",
    b"HOST:",
    b"Cookie: a=b; c=d",
    b"Trailer: Host",
    b"TE: trailers",
    b"X-Original-URI: /orders",
    b"Origin: https://app.example.com",
    b"Origin: https://other.example.com",
    b"Origin:",
    b"If-None-Match: *",
    b"Range: bytes=0-1",
    b"X-Odd: \xe9\xff",
    b"X-Odd: a\tb",
    b"X-Odd: a\x00b",
    b"X-Odd: a\x7fb",
    b"X-Odd: a\rb",
    b"X-Odd: a\nHost: z",
    b" folded: yes",
    b"\tfolded",
    b"no colon",
    b": no name",
    b"X Odd: 1",
    b"X-Odd : 1",
    b"X\xe9: 1",
    b"X'*|~: 1",
    b"X-Long: " + b"v" * 4000,
    b"X-Long: " + b"v" * 8300,
    b"Authorization: Basic dXNlcjpwYXNz",
    b"Proxy-Connection: close",
    b"",
)
#: How a token is shown; %b is the token.
BEARERS = (
    b"Authorization: Bearer %b",
    b"Authorization: Bearer %b",
    b"Authorization: Bearer %b",
    b"authorization: bearer %b",
    b"AUTHORIZATION:BEARER %b",
    b"Authorization: Bearer  %b",
    b"Authorization: Bearer %b ",
    b"Authorization:\tBearer %b",
    b"Authorization: Bearer\t%b",
    b"Authorization: Bearer %b, Bearer %b",
    b"Authorization: Bearer\xa0%b",
    b"Authorization: Bearer%b",
    b"Authorization: %b",
    b"Authorization: Bearer",
    b"Authorization:",
    b"X-Authorization: Bearer %b",
    b"Authorization: Bearer x%b",
    b"Authorization: Bearer %bA",
    b"Authorization: Bearer %b.",
    b"Authorization : Bearer %b",
    b"Author_ization: Bearer %b",
)
ENDS = (b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\r\r\n\r\n", b"\r\n", b"")
BODIES = (
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"\r\n",
    b"\x00",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class Checks:
    """Makes requests around *tokens*: good ones, one that is revoked, one that never was one."""

    random: Random
    tokens: tuple[bytes, ...]

    def generate(self, count: int) -> Iterator[Pieces]:
        """*count* of them, in turn of each kind; each is what one client sends over one connection."""
        kinds: tuple[Callable[[], Pieces], ...] = (
            self.plain,
            self.one_thing_odd,
            self.shuffled,
            self.pipelined,
            self.cut,
            self.smuggling,
            self.damaged,
        )
        for number in range(count):
            yield kinds[number % len(kinds)]()

    def request(
        self, *fields: bytes, method: bytes = b"GET", target: bytes = PATH, version: bytes = b"HTTP/1.1"
    ) -> bytes:
        """One request with *fields* and a line's end behind each."""
        return b"\r\n".join((b" ".join((method, target, version)), *fields)) + b"\r\n\r\n"

    def bearer(self, form: bytes = BEARERS[0]) -> bytes:
        """A field with one of the tokens in it."""
        return form.replace(b"%b", self.random.choice(self.tokens))

    def sane(self) -> bytes:
        """A check as a gateway sends it."""
        extra = [field for field in FIELDS[:3] if self.random.random() < 0.5]
        fields = [b"Host: x", self.bearer(), *extra]
        self.random.shuffle(fields)
        return self.request(*fields, method=self.random.choice(METHODS[:4]), target=self.target())

    def target(self) -> bytes:
        """A check, or in one of four requests the caller's profile, which is read in the same way."""
        return self.random.choice((*TARGETS[:3], PROFILE))

    def plain(self) -> Pieces:
        """As a gateway sends it, alone."""
        return (self.sane(),)

    def one_thing_odd(self) -> Pieces:
        """A sane check but for one field, its first line, or how it shows its token."""
        choice = self.random.choice
        odd = self.random.randrange(4)
        return (
            self.request(
                b"Host: x",
                self.bearer(choice(BEARERS) if odd == 0 else BEARERS[0]),
                *((choice(FIELDS),) if odd == 1 else ()),
                method=choice(METHODS) if odd == 2 else b"GET",
                target=choice(TARGETS) if odd == 3 else self.target(),
                version=choice(VERSIONS) if odd == 2 else b"HTTP/1.1",
            ),
        )

    def shuffled(self) -> Pieces:
        """Several fields, in any order, some twice."""
        fields = [b"Host: x", self.bearer(self.random.choice(BEARERS)), *self.random.choices(FIELDS, k=3)]
        self.random.shuffle(fields)
        return (self.request(*fields, target=self.target()) + self.random.choice(BODIES),)

    def pipelined(self) -> Pieces:
        """Two to four checks in one piece, the last of them perhaps cut off."""
        whole = b"".join(self.sane() for _ in range(self.random.randint(2, 4)))
        return (whole if self.random.random() < 0.7 else whole[: self.random.randint(1, len(whole))],)

    def cut(self) -> Pieces:
        """One check in two pieces or more."""
        return cut_at(self.sane(), *(self.random.random() for _ in range(self.random.randint(1, 3))))

    def smuggling(self) -> Pieces:
        """A body that is, or is not, the next request, by fields that contradict each other."""
        framing = self.random.choices(FIELDS[14:25], k=self.random.randint(1, 2))
        fields = [b"Host: x", self.bearer(), *framing]
        self.random.shuffle(fields)
        method = self.random.choice((b"GET", b"POST", b"HEAD"))
        return (self.request(*fields, method=method) + self.random.choice((*BODIES, self.sane())),)

    def damaged(self) -> Pieces:
        """A sane check with bytes that are others, are missing, or were not there; or with another end."""
        data = bytearray(self.sane())
        if self.random.random() < 0.3:
            return (bytes(data[:-4]) + self.random.choice(ENDS),)
        for _ in range(self.random.randint(1, 3)):
            at = self.random.randrange(len(data))
            data[at : at + self.random.randint(0, 1)] = self.random.choice(
                (b"", b"\r", b"\n", b"\x00", b" ", b":", b"\t", b"\xff", bytes([self.random.randrange(256)]))
            )
        return (bytes(data),)


def cut_at(data: bytes, *places: float) -> Pieces:
    """*data* cut at *places*, from 0 to 1."""
    at = sorted({0, len(data), *(int(place * len(data)) for place in places)})
    return tuple(data[begin:end] for begin, end in pairwise(at))
