"""What the workers say of a token, and of everything else that is asked."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.fault.asking import ask
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fault.asking import Answer
    from tests.rig import Service

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
