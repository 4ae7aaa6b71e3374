"""The servers under the tests do what fault tests ask of them."""

from __future__ import annotations

import time

import psutil
import psycopg
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tests.processes import ServerDied, wait_until
from tests.servers import RedisServer
from tests.servers.proxy import Mode, TcpProxy

DEADLINE_S = 0.3


def redis_client(url: str, *, deadline_s: float = 60) -> Redis:
    """Build a client that gives up after *deadline_s* seconds and tries nothing twice."""
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=deadline_s,
        socket_connect_timeout=deadline_s,
        retry=Retry(NoBackoff(), 0),
    )


def can_ping(client: Redis) -> bool:
    """True if the answer comes in time."""
    try:
        return bool(client.ping())
    except RedisTimeoutError:
        return False


def count_rows(url: str) -> int:
    """Return the number of rows in table ``t``."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM t").fetchone()
    assert row is not None
    return int(row[0])


def test_every_test_starts_with_an_empty_redis(redis_url, redis_server):
    """What one test wrote, the next does not see."""
    with redis_client(redis_url) as client:
        assert client.dbsize() == 0


def test_a_killed_redis_refuses_and_comes_back_empty(private_redis):
    """SIGKILL without persistence loses everything; the port stays the same."""
    with redis_client(private_redis.url) as client:
        client.set("k", "v")

        private_redis.kill()
        with pytest.raises(RedisConnectionError):
            client.ping()
        private_redis.start()

        assert client.get("k") is None


def test_an_append_only_redis_keeps_its_data_over_a_kill():
    """The folder outlives the process."""
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    with RedisServer(*options) as server, redis_client(server.url) as client:
        client.set("k", "v")

        server.kill()
        server.start()

        assert client.get("k") == "v"


def test_a_paused_redis_hangs_until_it_is_resumed(private_redis):
    """SIGSTOP looks like a hung server: no refusal, only silence."""
    with redis_client(private_redis.url, deadline_s=DEADLINE_S) as client:
        private_redis.pause()
        before = time.monotonic()
        with pytest.raises(RedisTimeoutError):
            client.ping()
        waited_s = time.monotonic() - before
        private_redis.resume()

        assert waited_s >= DEADLINE_S
        wait_until(lambda: can_ping(client), what="an answer")


@pytest.mark.parametrize("options", [(), ("--appendonly", "yes")], ids=["memory", "append-only"])
def test_a_restored_redis_has_the_data_of_the_dump_alone(options):
    """A restore takes the server back in time, also one with an append-only file."""
    with RedisServer(*options, password="s3 cret/@") as server, redis_client(server.url) as client:
        client.set("old", "1")
        dump = server.save_dump()
        client.set("new", "2")

        server.restore(dump)
        assert client.keys() == ["old"]
        server.restart()

        assert client.keys() == (["old"] if options else [])


def test_a_server_that_cannot_start_says_why():
    """A wrong option ends in the server's own words, at once."""
    with pytest.raises(ServerDied, match="no-such-option"), RedisServer("--no-such-option", "1"):
        pass


def test_a_closed_server_leaves_neither_process_nor_folder():
    """Nothing of a server is left behind."""
    with RedisServer() as server:
        pid = redis_client(server.url).info("server")["process_id"]

    assert not psutil.pid_exists(pid)
    assert not server.folder.exists()


def test_databases_are_separate(postgres_server, database_url):
    """Each test has a database to itself, an empty one or a copy."""
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")

    copy = postgres_server.create_database(template=database_url.rpartition("/")[2])
    empty = postgres_server.create_database()

    assert count_rows(copy) == 1
    with pytest.raises(psycopg.errors.UndefinedTable):
        count_rows(empty)


def test_a_killed_postgres_keeps_what_it_acknowledged(private_postgres):
    """SIGKILL of the server and all its backends loses no committed row; a restart loses none either."""
    url = private_postgres.create_database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        connection.commit()

        private_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    private_postgres.start()

    assert count_rows(url) == 1
    assert count_rows(private_postgres.restart().create_database(template=url.rpartition("/")[2])) == 1


def test_a_paused_postgres_stops_its_backends_too(private_postgres):
    """A connection that exists hangs, as on a frozen machine, and goes on afterwards."""
    with psycopg.connect(private_postgres.url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        backend = psutil.Process(connection.info.backend_pid)

        private_postgres.pause()
        assert backend.status() == psutil.STATUS_STOPPED
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(private_postgres.url, connect_timeout=2)
        private_postgres.resume()

        assert connection.execute("SELECT 2").fetchone() == (2,)


def test_a_proxy_passes_and_refuses(redis_url):
    """A closed listener ends existing connections and refuses new ones; afterwards all is as before."""
    with TcpProxy(redis_url) as proxy, redis_client(proxy.url_for(redis_url)) as client:
        assert client.set("k", "v")
        proxy.switch(Mode.REFUSE)
        with pytest.raises(RedisConnectionError):
            client.get("k")
        proxy.switch(Mode.PASS)

        assert client.get("k") == "v"


def test_a_proxy_resets(redis_url):
    """Every connection ends in a reset, not in an orderly close."""
    with TcpProxy(redis_url) as proxy, redis_client(proxy.url_for(redis_url)) as client:
        client.ping()

        proxy.switch(Mode.RESET)

        for _ in range(2):
            with pytest.raises(RedisConnectionError, match=r"(?i)reset"):
                client.ping()


def test_a_silent_proxy_loses_the_request(redis_url):
    """A connection is accepted and nothing is answered; what was cut while held never arrives."""
    with (
        TcpProxy(redis_url) as proxy,
        redis_client(proxy.url_for(redis_url), deadline_s=DEADLINE_S) as client,
        redis_client(redis_url) as direct,
    ):
        proxy.switch(Mode.SILENT)
        for _ in range(2):
            with pytest.raises(RedisTimeoutError):
                client.incr("n")
        proxy.switch(Mode.REFUSE)
        proxy.switch(Mode.PASS)

        wait_until(lambda: can_ping(client), what="an answer")
        assert direct.get("n") is None


def test_a_mute_proxy_loses_the_answer_alone(redis_url):
    """The server carries out what it never gets to acknowledge."""
    with (
        TcpProxy(redis_url) as proxy,
        redis_client(proxy.url_for(redis_url), deadline_s=DEADLINE_S) as client,
        redis_client(redis_url) as direct,
    ):
        wait_until(lambda: can_ping(client), what="a connection")

        proxy.switch(Mode.MUTE)
        with pytest.raises(RedisTimeoutError):
            client.incr("n")

        wait_until(lambda: direct.get("n") == "1", what="the request's arrival")
