"""A thousand addresses guess one password at once, while its owner logs in: counts are exact."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from authsvc.api.frame.context import DEVICE_HEADER
from tests.processes import HOST
from tests.rig import HOPELESS_S, PASSWORD, Service

pytestmark = pytest.mark.slow

EMAIL = "owner@example.com"
WRONG = "wrong horse battery staple"
OWNER = "192.0.2.1"
ADDRESSES, GUESSERS = 1000, 16
#: What the owner gets wrong afterwards, on their own device.
MISTAKES = 60


@pytest.fixture(scope="module")
def service(make_service) -> Service:
    """Serve with two workers, behind a proxy that says who asks, with the limits of the defaults."""
    made: Service = make_service(
        TRUSTED_PROXIES="127.0.0.1/32",
        RATE_LIMIT_LOGIN_IP="100/15minutes",
        RATE_LIMIT_LOGIN_ACCOUNT="10/15minutes",
        RATE_LIMIT_LOGIN_DEVICE="5/15minutes",
    )
    return made


def log_in(service: Service, address: str, password: str, device: str = "") -> tuple[int, str]:
    """One login over a connection of its own: status and device token."""
    connection = HTTPConnection(HOST, service.port, timeout=HOPELESS_S)
    headers = {"Content-Type": "application/json", "X-Forwarded-For": address, "Connection": "close"}
    if device:
        headers[DEVICE_HEADER] = device
    try:
        connection.request(
            "POST", "/v1/auth/login", json.dumps({"email": EMAIL, "password": password}), headers
        )
        answer = connection.getresponse()
        return answer.status, answer.headers[DEVICE_HEADER] or ""
    finally:
        connection.close()


def judged(service: Service, address: str, password: str, device: str = "") -> tuple[int, str]:
    """The same, asked again while a machine that is too busy refuses to judge (503)."""
    for _ in range(20):
        found = log_in(service, address, password, device)
        if found[0] != 503:
            return found
    raise AssertionError("never judged")


def assert_bounded(found: Counter[int], *, tries: int, quota: int) -> None:
    """
    Exactly *quota* of *tries* reached the hash, the rest was refused.

    What was not judged (503: no answer of Redis in time) may have been counted all the same.
    """
    assert quota - found[503] <= found[401] <= quota, found
    assert found[401] + found[429] + found[503] == tries, found
    assert found[503] < tries / 20, found


def test_strangers_share_ten_tries_and_the_owner_logs_in_at_once(service):
    """1,000 guesses from 1,000 addresses: 10 reach the hash; of the owner's 60 mistakes, 5 do."""
    service.register(EMAIL)
    status, device = judged(service, OWNER, PASSWORD)
    assert (status, bool(device)) == (200, True)

    with ThreadPoolExecutor(GUESSERS) as pool:
        addresses = [f"198.18.{number // 250}.{number % 250 + 1}" for number in range(ADDRESSES)]
        guesses = [pool.submit(log_in, service, address, WRONG) for address in addresses]
        during = [judged(service, OWNER, PASSWORD, device)[0] for _ in range(3)]
        found = Counter(guess.result()[0] for guess in guesses)
        afterwards = judged(service, OWNER, PASSWORD, device)[0]
        mistakes = [pool.submit(log_in, service, OWNER, WRONG, device) for _ in range(MISTAKES)]
        wrong = Counter(mistake.result()[0] for mistake in mistakes)

    assert_bounded(found, tries=ADDRESSES, quota=10)
    assert [*during, afterwards] == [200] * 4
    assert_bounded(wrong, tries=MISTAKES, quota=5)
    assert judged(service, OWNER, PASSWORD, device)[0] == 429
    assert judged(service, "203.0.113.9", PASSWORD)[0] == 429
