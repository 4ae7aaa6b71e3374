"""
Requests over connections of their own, timed, and what all workers answer.

A connection that breaks is an answer, too.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPMessage
from typing import TYPE_CHECKING, Any

from tests.processes import HOST, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.rig import Service

#: Longer than anybody waits: whoever has not been answered by then never will be.
ANSWER_WITHIN_S = 25.0
#: The status of what was never answered.
BROKEN = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; *body* is its JSON, None where there is none; ``BROKEN`` is the status of no answer."""

    status: int
    seconds: float
    body: Any
    headers: HTTPMessage

    @property
    def retry_after(self) -> str | None:
        """When to come back, in seconds."""
        return self.headers.get("Retry-After")


def ask(
    service: Service,
    method: str,
    path: str,
    *,
    token: str | None = None,
    json: object = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float = ANSWER_WITHIN_S,
) -> Answer:
    """One request; the kernel deals its connection to any worker."""
    sent = {"Connection": "close", **(headers or {})}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    data = None
    if json is not None:
        sent["Content-Type"] = "application/json"
        data = _encoded(json)
    connection = HTTPConnection(HOST, service.port, timeout=patience_s)
    began = time.monotonic()
    try:
        connection.request(method, path, body=data, headers=sent)
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException):
        return Answer(BROKEN, time.monotonic() - began, None, HTTPMessage())
    finally:
        connection.close()
    return Answer(response.status, time.monotonic() - began, _decoded(raw), response.headers)


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def _decoded(raw: bytes) -> Any:
    return json.loads(raw) if raw else None


#: For what only has to happen.
PATIENCE_S = 20.0
#: Between two looks at what does not work yet.
REST_S = 0.05
#: How often each worker is asked, and what that comes to with two of them.
CHECKS = 20
ALL_REFUSED = Counter({401: 40})
ALL_ACCEPTED = Counter({200: 40})

#: What verifies or makes a password, unless it is refused.
HASHING = ("login", "register", "password")


def later_than(answers: dict[str, Answer], limit_s: float) -> dict[str, float]:
    """The answers that took longer; a password that was hashed has taken what it takes."""
    judged = {name: answer for name, answer in answers.items() if name not in HASHING or answer.status == 503}
    return {name: answer.seconds for name, answer in judged.items() if answer.seconds > limit_s}


def without_retry_after(answers: dict[str, Answer]) -> list[str]:
    """The 503s that do not say when to come back."""
    return [n for n, answer in answers.items() if answer.status == 503 and not answer.retry_after]


def refused_within(service: Service, token: str, seconds: float) -> None:
    """Wait until each worker refuses *token*."""
    wait_until(lambda: set(service.verify_everywhere(token, times=1)) == {401}, timeout_s=seconds)


def answered(request: Callable[[], Answer]) -> Answer:
    """The first answer to *request* that is no 503: a machine that stands still may cause one at any time."""
    ends_s = time.monotonic() + PATIENCE_S
    while (answer := request()).status == 503 and time.monotonic() < ends_s:
        time.sleep(REST_S)
    return answer


def verdict(service: Service, token: str) -> int:
    """The status of a check of *token*, asked for again while it is 503."""
    return answered(partial(ask, service, "GET", "/v1/auth/verify", token=token)).status


def everywhere(service: Service, *tokens: str) -> list[Counter[int]]:
    """The statuses of 20 checks of each token by each of the two workers."""
    return [
        sum(service.from_each_worker(partial(_verdicts, service, token)), Counter[int]()) for token in tokens
    ]


def _verdicts(service: Service, token: str) -> Counter[int]:
    return Counter(verdict(service, token) for _ in range(CHECKS))
