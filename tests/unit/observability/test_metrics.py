"""The figures: names, labels, many processes, and a folder that somebody deletes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from authsvc.observability.metrics import make_metrics
from tests import ROOT


def figures(text: str) -> dict[str, float]:
    """Samples by name and labels, as PromQL writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scraped(metrics) -> dict[str, float]:
    return figures(metrics.exposition()[0].decode())


@pytest.fixture
def metrics():
    return make_metrics()


@pytest.mark.parametrize(
    ("measure", "sample", "value"),
    [
        (lambda m: m.login("ok"), 'authsvc_logins_total{result="ok"}', 1),
        (lambda m: m.registration("email_taken"), 'authsvc_registrations_total{result="email_taken"}', 1),
        (lambda m: m.refresh("reused"), 'authsvc_refreshes_total{result="reused"}', 1),
        (lambda m: m.logout(), "authsvc_logouts_total", 1),
        (
            lambda m: m.token_check("active", "redis"),
            'authsvc_token_checks_total{result="active",source="redis"}',
            1,
        ),
        (lambda m: m.rate_limited("login-ip"), 'authsvc_rate_limited_total{rule="login-ip"}', 1),
        (lambda m: m.password_hash(0.25), 'authsvc_password_hash_seconds_bucket{le="0.3"}', 1),
        (lambda m: m.password_hash_queue(3), "authsvc_password_hash_queue", 3),
        (lambda m: m.revocation_propagation(0.02), "authsvc_revocation_propagation_seconds_count", 1),
        (lambda m: m.revocation_lag(7), "authsvc_revocation_lag", 7),
        (lambda m: m.redis_shards_proven(43), "authsvc_redis_shards_proven", 43),
        (lambda m: m.user_cache_hits(5), "user_cache_hits_total", 5),
        (lambda m: m.user_cache_misses(2), "user_cache_misses_total", 2),
        (lambda m: m.cache_operation(0.0004), 'cache_operation_latency_seconds_bucket{le="0.0005"}', 1),
        (lambda m: m.cache_error("timeout"), 'cache_errors_total{reason="timeout"}', 1),
        (lambda m: m.breaker_state(2), "cache_circuit_breaker_state", 2),
        (lambda m: m.log_dropped(), "authsvc_log_records_dropped_total", 1),
    ],
)
def test_each_verb_moves_its_metric(metrics, measure, sample, value):
    """The names are a contract with dashboards."""
    measure(metrics)

    assert scraped(metrics)[sample] == value


def test_a_label_s_counter_is_the_same_at_every_call(metrics):
    """Children are kept, not made anew."""
    for _ in range(3):
        metrics.token_check("active", "redis")
    metrics.token_check("active", "sql")

    found = scraped(metrics)
    assert found['authsvc_token_checks_total{result="active",source="redis"}'] == 3
    assert found['authsvc_token_checks_total{result="active",source="sql"}'] == 1


def test_each_registry_has_its_own_figures():
    """A process may hold several: tests, and nothing global."""
    registry = CollectorRegistry()
    first, second = make_metrics(registry), make_metrics()

    first.logout()

    assert first.registry is registry
    assert scraped(first)["authsvc_logouts_total"] == 1
    assert scraped(second)["authsvc_logouts_total"] == 0


def test_the_media_type_is_one_that_every_prometheus_reads(metrics):
    """Text, version 0.0.4."""
    assert metrics.exposition()[1] == "text/plain; version=0.0.4; charset=utf-8"


def test_requests_are_timed_by_route_template(metrics):
    """No id gets into a label, unknown paths are one, excluded ones none; no route is added."""
    app = Flask("measured")
    app.add_url_rule("/users/<name>", view_func=lambda name: name)
    app.add_url_rule("/health", "health", view_func=lambda: "ok")
    metrics.instrument(app, excluded_paths=["/health"])
    client = app.test_client()

    for path in ("/users/alice", "/users/bob", "/health", "/nowhere/1", "/nowhere/2"):
        client.get(path)

    name = "flask_http_request_duration_seconds_count"
    counts = {sample: value for sample, value in scraped(metrics).items() if sample.startswith(name)}
    assert counts == {
        f'{name}{{method="GET",status="200",url_rule="/users/<name>"}}': 2,
        f'{name}{{method="GET",status="404",url_rule="None"}}': 2,
    }
    assert client.get("/metrics").status_code == 404


# What follows needs a process that has PROMETHEUS_MULTIPROC_DIR, which cannot be undone within this one.
PRELUDE = """
import json, os, shutil, sys, threading
from pathlib import Path
import prometheus_client
folder = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", sys.argv[1]))
from flask import Flask
from authsvc.observability.figures import forget_figures, forget_process
from authsvc.observability.metrics import make_metrics

def in_a_worker(work):
    child = os.fork()
    if child == 0:
        work(make_metrics())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return child
"""


def run(script: str, folder: Path) -> dict[str, float]:
    """Figures that *script* prints in the end."""
    environment = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{PRELUDE}{script}\nprint(json.dumps(metrics.exposition()[0].decode()))",
            folder,
        ],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return figures(json.loads(done.stdout))


def test_the_figures_of_all_processes_are_one(tmp_path):
    """Counts and histograms add up over living and dead workers; gauges are the living ones' alone."""
    found = run(
        """
def work(metrics):
    metrics.login("ok"); metrics.password_hash(0.25); metrics.breaker_state(2); metrics.password_hash_queue(4)
children = [in_a_worker(work) for _ in range(2)]
forget_process(children[0])
metrics = make_metrics()
metrics.login("ok"); metrics.breaker_state(1); metrics.password_hash_queue(1)
""",
        tmp_path,
    )

    assert found['authsvc_logins_total{result="ok"}'] == 3
    assert found["authsvc_password_hash_seconds_count"] == 2
    assert found["cache_circuit_breaker_state"] == 2
    assert found["authsvc_password_hash_queue"] == 5


#: Two processes that are forked from one with metrics, and start them.
FORKED = """
import time
metrics = make_metrics()
app = Flask("measured"); metrics.instrument(app)
metrics.login("ok"); metrics.breaker_state(2)
forget_figures(folder)
def in_a_fork(work):
    child = os.fork()
    if child == 0:
        metrics.start()
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return child
"""


def test_processes_that_are_forked_from_one_with_metrics_have_files_of_their_own(tmp_path):
    """What was counted before the fork is in each of them; all series exist from the start."""
    found = run(
        f"""
{FORKED}
def count():
    metrics.login("ok"); metrics.breaker_state(1); metrics.password_hash(0.1)
    assert {{f.name.rpartition("_")[2] for f in folder.glob("*.db")}} >= {{f"{{os.getpid()}}.db"}}
children = [in_a_fork(count), in_a_fork(lambda: None)]
assert {{f.name.rpartition("_")[2] for f in folder.glob("*.db")}} == {{f"{{child}}.db" for child in children}}
in_a_fork(lambda: print(json.dumps(metrics.exposition()[0].decode())) or sys.stdout.flush() or os._exit(0))
sys.exit(0)
""",
        tmp_path,
    )

    assert found['authsvc_logins_total{result="ok"}'] == 1 + 1 + 1 + 1
    assert found['authsvc_registrations_total{result="ok"}'] == 0
    assert found["cache_circuit_breaker_state"] == 2
    assert found["authsvc_password_hash_seconds_count"] == 1


def test_a_forked_process_without_room_for_files_counts_in_memory(tmp_path):
    """Nothing fails and nothing is lost; no file of another process is written to."""
    found = run(
        f"""
{FORKED}
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))
def count():
    for number in range(100):
        metrics.login("ok"); metrics.cache_error(f"reason-{{number}}")
    assert list(folder.glob("*.db")) == []
    print(json.dumps(metrics.exposition()[0].decode()))
    sys.stdout.flush()
in_a_fork(count)
sys.exit(0)
""",
        tmp_path,
    )

    assert found['authsvc_logins_total{result="ok"}'] == 1 + 100
    assert sum(value for name, value in found.items() if name.startswith("cache_errors_total")) == 100


def test_the_folder_may_go_at_any_time(tmp_path):
    """Counting never fails, new labels included, and the next scrape has every figure again."""
    found = run(
        """
metrics = make_metrics()
app = Flask("measured"); app.add_url_rule("/", view_func=lambda: "x", endpoint="x"); metrics.instrument(app)
metrics.login("ok"); metrics.breaker_state(2)
for _ in range(2):
    shutil.rmtree(folder)
    metrics.login("ok"); metrics.login("failed"); metrics.password_hash(0.1)
    assert app.test_client().get("/").status_code == 200
    assert metrics.heal()
    metrics.login("ok")
""",
        tmp_path / "figures",
    )

    assert found['authsvc_logins_total{result="ok"}'] == 5
    assert found['authsvc_logins_total{result="failed"}'] == 2
    assert found["authsvc_password_hash_seconds_count"] == 2
    assert found["cache_circuit_breaker_state"] == 2
    assert found['flask_http_request_total{method="GET",status="200"}'] == 2


def test_a_folder_that_cannot_come_back_still_stops_nothing(tmp_path):
    """A file where the folder was: counting goes on, the scrape answers with what is there."""
    found = run(
        """
metrics = make_metrics()
shutil.rmtree(folder); folder.touch()
metrics.login("ok")
assert not metrics.heal()
metrics.exposition()
folder.unlink()
""",
        tmp_path / "figures",
    )

    assert found['authsvc_logins_total{result="ok"}'] == 1


def test_a_file_that_makes_no_sense_is_left_out(tmp_path):
    """A worker that starts has an empty file for a moment; the others are counted."""
    found = run(
        """
metrics = make_metrics()
metrics.login("ok")
(folder / "counter_1.db").touch()
(folder / "counter_2.db").write_bytes(b"\\xff" * 100)
head = b"\\x40\\0\\0\\0" + b"\\0" * 4
(folder / "histogram_3.db").write_bytes(head + b"\\x08\\0\\0\\0nonsense" + b"\\0" * 60)
""",
        tmp_path,
    )

    assert found['authsvc_logins_total{result="ok"}'] == 1


def test_threads_lose_no_count(tmp_path):
    """8 threads, 500 counts each: 4,000."""
    found = run(
        """
metrics = make_metrics()
threads = [threading.Thread(target=lambda: [metrics.token_check("active", "redis") for _ in range(500)])
           for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
""",
        tmp_path,
    )

    assert found['authsvc_token_checks_total{result="active",source="redis"}'] == 4000


#: Has the script below run where no file may have more than 80 KiB: 64 KiB fit, the next size does not.
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (80 << 10, 80 << 10))"
#: The same where not even the first size fits.
NO_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))"


@pytest.mark.parametrize("limit", [NO_FILES, SMALL_FILES])
def test_what_has_no_room_in_files_is_counted_in_memory(tmp_path, limit):
    """No count fails and none is lost, whether the files cannot be made or cannot grow; it is said once."""
    found = run(
        f"""
{limit}
import logging
said = []
logging.getLogger("authsvc.observability.figures").addHandler(logging.Handler())
logging.Handler.emit = lambda _, record: said.append(record.getMessage())
metrics = make_metrics()
app = Flask("measured"); metrics.instrument(app)
app.add_url_rule("/", view_func=lambda: "x", endpoint="x")
for number in range(3000):
    metrics.cache_error(f"reason-{{number}}")
for _ in range(2):
    metrics.login("ok"); metrics.password_hash(0.1); metrics.breaker_state(2)
    assert app.test_client().get("/").status_code == 200
assert said == ["metrics.in_memory"], said
""",
        tmp_path,
    )

    assert sum(value for name, value in found.items() if name.startswith("cache_errors_total")) == 3000
    assert found['authsvc_logins_total{result="ok"}'] == 2
    assert found["authsvc_password_hash_seconds_count"] == 2
    assert found["cache_circuit_breaker_state"] == 2
    assert found['flask_http_request_total{method="GET",status="200"}'] == 2


def test_the_blocks_of_a_file_are_there_before_it_is_written_to(tmp_path):
    """Else a file system that fills up later would kill the process at a count."""
    run(
        """
metrics = make_metrics()
for number in range(3000):
    metrics.cache_error(f"reason-{number}")
files = list(folder.glob("*.db"))
assert {f.name.partition("_")[0] for f in files} == {"counter", "gauge", "histogram"}
assert max(f.stat().st_size for f in files) > 64 << 10
assert [f.name for f in files if f.stat().st_blocks * 512 < f.stat().st_size] == []
shutil.rmtree(folder)
assert metrics.heal()
files = list(folder.glob("*.db"))
assert files
assert [f.name for f in files if f.stat().st_blocks * 512 < f.stat().st_size] == []
""",
        tmp_path / "figures",
    )


def test_files_that_cannot_come_back_leave_the_count_where_it_is(tmp_path):
    """Deleted while there is no room for new ones: nothing fails; with room again all figures are back."""
    found = run(
        """
import resource
metrics = make_metrics()
metrics.login("ok")
shutil.rmtree(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.RLIM_INFINITY))
assert not metrics.heal()
metrics.login("ok")
assert list(folder.glob("*.db")) == []
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert metrics.heal()
metrics.login("ok")
""",
        tmp_path / "figures",
    )

    assert found['authsvc_logins_total{result="ok"}'] == 3
