"""Two workers as one service: its figures, its headers, its log, its end."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from uuid import uuid4

import jwt
import psycopg
import pytest
import requests

from tests.processes import HOST
from tests.rig import HOPELESS_S, PASSWORD, Service
from tests.timings import PATIENT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PRODUCTS = ("gunicorn", "werkzeug", "flask", "python", "authsvc/")
OTHER_PASSWORD = "a staple that no horse has seen"


@pytest.fixture(scope="module")
def env(service) -> dict[str, str]:
    """The settings of the service, for tests that start and stop another one."""
    made: dict[str, str] = service.env
    return made


def newcomer(service: Service) -> str:
    """Somebody new's address."""
    email = f"{uuid4().hex}@example.com"
    assert service.register(email).status_code == 201
    return email


def figures(service: Service) -> Counter[str]:
    """The counters of the service, by name with labels."""
    samples = (
        line.rpartition(" ")
        for line in requests.get(service.metrics_url, timeout=HOPELESS_S).text.splitlines()
    )
    return Counter({name: int(float(n)) for name, _, n in samples if "_total" in name and "#" not in name})


def grown(before: Counter[str], after: Counter[str], name: str) -> dict[str, int]:
    """By how much each counter of *name* grew, by its labels."""
    return {key.removeprefix(name): n for key, n in (after - before).items() if key.startswith(name)}


def test_counters_are_exact_over_both_workers(service):
    """Nothing is counted twice and nothing is lost, whichever worker answers the scrape."""
    email = newcomer(service)
    before = figures(service)

    logins = service.from_each_worker(lambda: [service.log_in(email) for _ in range(3)])
    service.from_each_worker(
        lambda: service.call("POST", "/v1/auth/login", json={"email": email, "password": "no"})
    )
    pairs = [pair for each in logins for pair in each]
    for pair in pairs:
        assert service.verify_everywhere(pair["access_token"], times=5) == {200: 10}
    for pair in pairs[:2]:
        assert service.call("POST", "/v1/auth/logout", token=pair["access_token"]).status_code == 204
        assert service.verify_everywhere(pair["access_token"], times=2) == {401: 4}
    assert service.verify_everywhere("not.a.token", times=1) == {401: 2}
    scrapes = service.from_each_worker(lambda: figures(service))

    for after in scrapes:
        assert grown(before, after, "authsvc_logins_total") == {
            '{result="ok"}': 6,
            '{result="invalid_credentials"}': 2,
        }
        assert grown(before, after, "authsvc_logouts_total") == {"": 2}
        checks = grown(before, after, "authsvc_token_checks_total")
        assert sum(n for labels, n in checks.items() if 'result="active"' in labels) == 60
        assert sum(n for labels, n in checks.items() if 'result="revoked"' in labels) == 8
        assert sum(n for labels, n in checks.items() if 'result="invalid"' in labels) == 2
        assert sum(checks.values()) == 70


def test_metrics_are_on_their_own_port_alone(service):
    """The public port has no /metrics; the metrics port has nothing else; no label names a person."""
    newcomer(service)
    public = service.call("GET", "/metrics")
    other = requests.get(service.metrics_url.replace("/metrics", "/v1/health/live"), timeout=HOPELESS_S)
    scrape = requests.get(service.metrics_url, timeout=HOPELESS_S)

    assert (public.status_code, public.json()["code"]) == (404, "not_found")
    assert other.status_code == 404
    assert scrape.status_code == 200
    assert scrape.headers["Content-Type"].startswith("text/plain")
    assert "@" not in scrape.text
    assert re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", scrape.text) is None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/health/live", 200),
        ("GET", "/v1/auth/verify", 401),
        ("GET", "/v1/me", 401),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/auth/login", 405),
        ("POST", "/v1/auth/login", 400),
    ],
)
def test_no_answer_names_a_product_and_each_has_an_id(service, method, path, status):
    """Who looks for a version to attack finds none; who complains can say which request it was."""
    answer = service.call(method, path)

    assert answer.status_code == status
    assert "Server" not in answer.headers
    assert not [word for word in PRODUCTS if word in (str(answer.headers) + answer.text).lower()]
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["X-Request-Id"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/v1/health/live", "/v1/auth/verify"])
def test_a_sane_request_id_is_kept_and_any_other_is_replaced(service, path):
    """The caller's id joins their log to ours; what would break a log line or a header does not get in."""
    kept = service.call("GET", path, headers={"X-Request-Id": "Trace-1.2_3"})
    others = [
        service.call("GET", path, headers={"X-Request-Id": bad}) for bad in ("a b", "x" * 65, '"}{', "é")
    ]

    assert kept.headers["X-Request-Id"] == "Trace-1.2_3"
    ids = {answer.headers["X-Request-Id"] for answer in others}
    assert len(ids) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", each) for each in ids)


def test_the_log_of_everything_holds_nothing_secret(env, tmp_path):
    """After every kind of request, right and wrong: no token, password, address, hash, key or DSN."""
    with Service(env | {"LOG_LEVEL": "debug"}, tmp_path, entry=PATIENT) as service:
        secrets = live_a_life(service)
        status = service.stop()
    log = service.log.read_text()

    assert status == 0
    assert log.count('"event":"login.succeeded"') == 2
    assert log.count('"event":"request.answered"') > 10
    assert {name for name, secret in secrets.items() if secret in log} == set()


def live_a_life(service: Service) -> dict[str, str]:
    """Everything one can ask for, with what must not be found in the log of it, by name."""
    email = newcomer(service)
    with psycopg.connect(service.env["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT password_hash FROM users WHERE email = %s", [email]).fetchone()
    assert row is not None
    first, second = service.log_in(email), service.log_in(email)
    refreshed = service.call(
        "POST", "/v1/auth/refresh", json={"refresh_token": first["refresh_token"]}
    ).json()
    token = refreshed["access_token"]
    ask_for_everything(service, token, email)
    service.call("DELETE", f"/v1/me/sessions/{second['session_id']}", token=token)
    service.call("POST", "/v1/auth/logout", token=token)
    claims = jwt.decode(token, options={"verify_signature": False})
    return {
        "address": email,
        "local part": email.partition("@")[0],
        "password": PASSWORD,
        "other password": OTHER_PASSWORD,
        "hash": row[0],
        "salt": row[0].rpartition("$")[2],
        "access token": first["access_token"],
        "signature": token.rpartition(".")[2],
        "refresh token": first["refresh_token"],
        "next refresh token": refreshed["refresh_token"],
        "token id": claims["jti"],
        "token secret": service.env["TOKEN_SECRET"],
        "pepper": service.env["PASSWORD_PEPPER"],
        "database": service.env["DATABASE_URL"],
        "redis": service.env["REDIS_URL"],
        "private note": "a private note",
    }


def ask_for_everything(service: Service, token: str, email: str) -> None:
    """Requests that a log would be tempted to tell more about."""
    wrong_login = {"email": email, "password": OTHER_PASSWORD}
    passwords = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    service.call("POST", "/v1/auth/login", json=wrong_login)
    service.call("POST", "/v1/auth/login", json=wrong_login | {"pasword": OTHER_PASSWORD})
    service.call(
        "POST",
        "/v1/auth/login",
        data=f'{{"email": "{email}", broken',
        headers={"Content-Type": "application/json"},
    )
    service.call("POST", "/v1/auth/register", json={"email": email, "password": PASSWORD})
    service.call("POST", "/v1/auth/refresh", json={"refresh_token": token})
    service.call("GET", f"/v1/me?access_token={token}&email={email}", token=token)
    service.call("GET", f"/{email}/{token}", token=token)
    service.call("PATCH", "/v1/me", token=token, json={"name": "a private note"})
    service.call("PUT", "/v1/me/preferences", token=token, json={"note": "a private note"})
    service.call("POST", "/v1/me/password", token=token, json=passwords)
    service.call("GET", "/v1/users", token=token)
    service.call("GET", "/v1/auth/verify", token=token + "=")


def test_sigterm_lets_what_was_begun_finish(env, tmp_path):
    """Logins that wait for their hash are answered, then the service ends with status 0, within its 20 s."""
    with Service(env | {"BCRYPT_COST": "11"}, tmp_path, entry=PATIENT) as service, ExitStack() as stack:
        email = newcomer(service)
        connections = [stack.enter_context(closing(connected(service))) for _ in range(6)]
        body = json.dumps({"email": email, "password": PASSWORD})
        for connection in connections:
            connection.request("POST", "/v1/auth/login", body, {"Content-Type": "application/json"})
        status = service.stop()
        answers = [connection.getresponse().status for connection in connections]

    assert answers == [200] * 6
    assert status == 0


def connected(service: Service) -> HTTPConnection:
    """A connection that a worker has taken, so that what is sent on it is under way."""
    connection = HTTPConnection(HOST, service.port, timeout=HOPELESS_S)
    connection.request("GET", "/v1/health/live")
    connection.getresponse().read()
    return connection
