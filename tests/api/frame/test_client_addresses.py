"""Which address a request is counted and noted under: the peer's, or what trusted proxies say."""

from __future__ import annotations

import pytest

from tests.api.driver import Api, MakeApi, new_email
from tests.rig import PASSWORD

WRONG = "wrong horse battery staple"


def statuses(answers) -> list[int]:
    """In order."""
    return [answer.status_code for answer in answers]


def test_an_ipv6_network_is_one_client(make_api):
    """A household has a /64 to choose from; its neighbour has another."""
    api = make_api(RATE_LIMIT_LOGIN_IP="2/hour")
    addresses = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::9", "2001:db8:0:1:8000::"]

    answers = [api.log_in(new_email(), ip=address) for address in addresses]

    assert statuses(answers) == [401, 401, 429]
    assert api.log_in(new_email(), ip="2001:db8:0:2::1").status_code == 401


def test_ipv4_inside_ipv6_is_ipv4(make_api):
    """A dual-stack socket hands out mapped addresses: the same client, and not one /64 for all of IPv4."""
    api = make_api(RATE_LIMIT_LOGIN_IP="1/hour")

    answers = [api.log_in(new_email(), ip=ip) for ip in ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2")]

    assert statuses(answers) == [401, 429, 401]


def test_a_forwarded_address_is_anybodys_word_without_trusted_proxies(make_api):
    """A guesser cannot make up addresses: the peer is the client."""
    api = make_api(RATE_LIMIT_LOGIN_IP="3/hour")
    body = {"email": new_email(), "password": WRONG}
    lies = [{"X-Forwarded-For": f"192.0.2.{n}", "Forwarded": f"for=192.0.2.{n}"} for n in range(4)]
    lies[2] |= {"X-Real-IP": "192.0.2.7", "X-Client-IP": "192.0.2.7", "True-Client-IP": "192.0.2.7"}

    answers = [api.post("/v1/auth/login", body, headers=headers) for headers in lies]

    assert statuses(answers) == [401, 401, 401, 429]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", "192.0.2.1", "203.0.113.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.1, 10.9.9.9", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1,192.0.2.1 ,\t10.9.9.9, fd00::7", "192.0.2.1"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", "192.0.2.1, nonsense, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", "192.0.2.1, ", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:4711", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1:1, 192.0.2.1:65535, 10.9.9.9:80", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", "1.1.1.1, [2001:db8::1]:443, [fd00::7]:80", "2001:db8::1"),
        ("10.0.0.1", "[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::1", "10.0.0.1"),
        ("10.0.0.1", "[2001:db8::1]443", "10.0.0.1"),
        ("10.0.0.1", "[192.0.2.1]:80", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:http", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:655360", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:\u0661", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "010.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "2001:DB8::0:1", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "fe80::1%" + "x" * 500, "fe80::1"),
        ("fd00::1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("", "192.0.2.1", "0.0.0.0"),
    ],
)
def test_trusted_proxies_are_walked_from_the_right(proxied, peer, forwarded, client):
    """To the first hop that is not one of them; what is no address ends the walk at the last good one."""
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    person = proxied.someone()
    body = {"email": person.email, "password": PASSWORD}

    answer = proxied.post("/v1/auth/login", body, headers=headers, ip=peer)

    sessions = person.call("GET", "/v1/me/sessions").json["items"]
    assert [one["ip"] for one in sessions if one["id"] == answer.json["session_id"]] == [client]


@pytest.fixture(scope="module")
def proxied(make_module_api: MakeApi) -> Api:
    """Run behind proxies of 10.0.0.0/8 and fd00::/8."""
    return make_module_api(TRUSTED_PROXIES="10.0.0.0/8,fd00::/8")


def test_behind_a_proxy_each_client_has_its_own_quota(make_api):
    """Not all of the internet one."""
    api = make_api(RATE_LIMIT_LOGIN_IP="1/hour", TRUSTED_PROXIES="10.0.0.0/8")
    body = {"email": new_email(), "password": WRONG}

    answers = [
        api.post("/v1/auth/login", body, ip="10.0.0.1", headers={"X-Forwarded-For": f"9.9.9.9, {client}"})
        for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
    ]

    assert statuses(answers) == [401, 401, 429]
