"""Traces: a collector in this process hears what the service does, and no secret."""

from __future__ import annotations

import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from authsvc.settings import Settings
from authsvc.wiring.preflight import local_problems
from tests.processes import HOST, wait_until
from tests.rig import PASSWORD, Service, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
UNTRACED = {"traceparent": f"00-{TRACE[::-1]}-b7ad6b7169203331-00"}


class Collector:
    """Takes OTLP over HTTP, as any collector does, and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        keep = self._keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                keep(self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Encoding"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self.server.server_port}"

    def of_trace(self, trace_id: str) -> dict[str, list[dict[str, str]]]:
        """The attributes of the spans of one trace, by the span's name."""
        found: dict[str, list[dict[str, str]]] = {}
        for span in [one for one in self.spans if one.trace_id.hex() == trace_id]:
            found.setdefault(span.name, []).append({one.key: _text(one.value) for one in span.attributes})
        return found

    def _keep(self, body: bytes, encoding: str | None) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(gzip.decompress(body) if encoding == "gzip" else body)
        for of_resource in request.resource_spans:
            names = {one.key: one.value.string_value for one in of_resource.resource.attributes}
            self.services.add(names["service.name"])
            for of_scope in of_resource.scope_spans:
                self.spans.extend(of_scope.spans)


def _text(value: Any) -> str:
    return value.string_value or str(value.int_value)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector that listens."""
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever)
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


@pytest.fixture(scope="module")
def service(collector, make_service) -> Service:
    """A service that traces to it."""
    made: Service = make_service(
        TRACING="otlp",
        TRACING_SAMPLE_PERCENT="0",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    return made


def test_a_request_its_statements_and_its_calls_to_redis_are_one_trace(service, collector):
    """Under the caller's trace id, by route, statement and command; nothing that was sent is in them."""
    email = "ada@example.com"
    service.register(email)
    body = {"email": email, "password": PASSWORD}

    pair = service.call("POST", "/v1/auth/login", json=body, headers=TRACED).json()
    access = pair["access_token"]
    checked = service.call("GET", "/v1/auth/verify/orders?key=hidden", token=access, headers=TRACED)
    wait_until(lambda: "GET /v1/auth/verify" in collector.of_trace(TRACE))
    wait_until(lambda: "POST /v1/auth/login" in collector.of_trace(TRACE))
    spans = collector.of_trace(TRACE)

    assert checked.status_code == 200
    assert collector.services == {"authsvc"}
    assert spans["POST /v1/auth/login"][0]["http.route"] == "/v1/auth/login"
    assert spans["GET /v1/auth/verify"][0]["http.response.status_code"] == "200"
    assert {one["db.system"] for one in spans["SELECT"]} == {"postgresql"}
    assert {one["db.system"] for one in spans["mget"]} == {"redis"}
    told = str(collector.spans)
    for secret in (PASSWORD, email, access, pair["refresh_token"], "hidden", "orders"):
        assert secret not in told


def test_a_check_that_is_sampled_leaves_the_lane(service, collector):
    """Its caller traces it, so a thread answers it, and its span is there; the checks around it have none."""
    service.register("lane@example.com")
    token = service.log_in("lane@example.com")["access_token"]
    for _ in range(4):  # either worker knows the token from then on
        assert service.verify_everywhere(token, times=2) == {200: 4}
    before = len(collector.of_trace(TRACE).get("GET /v1/auth/verify", []))

    checked = service.call("GET", "/v1/auth/verify", token=token, headers=TRACED)
    wait_until(lambda: len(collector.of_trace(TRACE)["GET /v1/auth/verify"]) > before)

    assert checked.status_code == 200
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


def test_the_log_names_the_trace(service):
    """Whoever has a trace finds its lines."""
    answer = service.call("GET", "/v1/me", headers={**TRACED, "X-Request-Id": "traced-1"})

    wait_until(lambda: '"traced-1"' in service.log.read_text())
    (line,) = [line for line in service.log.read_text().splitlines() if '"traced-1"' in line]
    assert answer.status_code == 401
    assert f'"trace_id":"{TRACE}"' in line


def test_who_decided_against_a_trace_gets_none(service, collector):
    """Not a caller who said no, not the comparisons of every second, not who is not sampled."""
    for headers in (UNTRACED, {}):
        assert service.call("GET", "/v1/auth/verify", headers=headers).status_code == 401
    service.call("GET", "/v1/me", headers=TRACED)
    traced = len(collector.of_trace(TRACE).get("GET /v1/me", []))
    service.call("GET", "/v1/me", headers=TRACED)
    wait_until(lambda: len(collector.of_trace(TRACE).get("GET /v1/me", [])) > traced)

    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


def test_without_the_extra_the_service_does_not_start(monkeypatch, tmp_path, postgres_server, redis_url):
    """It says what to install, rather than trace nothing."""
    env = environment(postgres_server.url, redis_url, tmp_path, TRACING="otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)

    problems = local_problems(Settings.from_env(env))

    assert [str(problem) for problem in problems] == [
        "TRACING otlp needs OpenTelemetry: install requirements/otel.txt"
    ]
