"""The same client over Sentinels, through TLS, and as a narrow user."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from redis import Redis

from authsvc.cache import (
    ANY,
    CacheError,
    CacheUnavailable,
    ClusterAddress,
    ClusterServers,
    Counters,
    Locks,
    Meter,
    Monitor,
    RedisAddress,
    SentinelAddress,
    State,
    Topology,
    Values,
    bounded_pool,
    pattern_drop,
    sentinel_pool,
)
from tests.contract.cache.clients import (
    IDENTS,
    KEYS,
    PATIENT,
    SPACE,
    Row,
    answer_to,
    client_of,
    load,
    reads_over,
    rows_of,
)
from tests.processes import wait_until
from tests.servers import RedisServer
from tests.servers.certificates import self_signed
from tests.servers.clusters import SERVICE, TlsFront, watched

# Sentinels


#: Sentinels that stood still for 2 s on a busy machine promote nobody for the next 30 s.
FAILOVER_WITHIN_S = 120


def test_a_failover_is_followed_and_seen():
    """The primary is killed; writes go to the new one soon, over connections with higher stamps."""
    with watched() as servers:
        address = SentinelAddress(sentinels=servers.addresses, service=SERVICE)
        client = client_of(sentinel_pool(address, size=4, deadlines=PATIENT))
        values = Values(client=client, space=SPACE)
        values.set("7", "before")
        wait_until(lambda: _has(servers.replica, SPACE.key("7")), what="replication")
        before = client.mget([SPACE.key("7")]).generation

        servers.primary.kill()
        wait_until(lambda: _can_write(values), what="writes again", timeout_s=FAILOVER_WITHIN_S)

        assert values.get("7") == "before"
        assert client.mget([SPACE.key("7")]).generation > before
        client.close()


def test_a_polled_connection_leads_to_the_primary_of_the_moment():
    """Made anew after a failover, it reads from the new one, with a higher stamp."""
    with watched() as servers:
        address = SentinelAddress(sentinels=servers.addresses, service=SERVICE)
        pool = sentinel_pool(address, size=4, deadlines=PATIENT)
        values = Values(client=client_of(pool), space=SPACE)
        values.set("7", "before")
        wait_until(lambda: _has(servers.replica, SPACE.key("7")), what="replication")
        reads = reads_over(pool)
        before = reads.generation
        assert b"before" in (answer_to(reads, SPACE.key("7"))[0] or b"")

        servers.primary.kill()
        with pytest.raises(CacheUnavailable):
            answer_to(reads, SPACE.key("7"))
        wait_until(lambda: _can_write(values), what="writes again", timeout_s=FAILOVER_WITHIN_S)
        values.set("7", "after")
        reads.renew()

        assert reads.adopt(lambda generation: generation > before)
        assert b"after" in (answer_to(reads, SPACE.key("7"))[0] or b"")
        reads.close()


def test_without_sentinels_the_refusal_is_soon():
    """Nobody knows the primary: an outage, within the deadlines."""
    client = client_of(sentinel_pool(SentinelAddress(sentinels=(("127.0.0.1", 1),), service="x"), size=1))

    with pytest.raises(CacheUnavailable, match="refused"):
        client.ping()


def _has(server, key):
    with Redis.from_url(server.url) as client:
        return bool(client.exists(key))


def _can_write(values):
    with suppress(CacheError):
        values.set("8", "after")
        return True
    return False


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the files of a certificate for 127.0.0.1, signed by itself, and of its key."""
    return self_signed(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@pytest.fixture
def front(private_redis, certificate):
    """Return TLS in front of a server."""
    with TlsFront(private_redis, *certificate) as front:
        yield front


def test_tls_with_a_known_root(front, certificate):
    """Encrypted, verified, and otherwise the same."""
    address = RedisAddress(host="127.0.0.1", port=front.port, tls=True, tls_ca=str(certificate[0]))
    client = client_of(bounded_pool(address, size=2, deadlines=PATIENT))
    client.call("SET", "a", "x" * 100_000)

    assert client.mget(["a"]).values == [b"x" * 100_000]
    client.close()


def test_a_polled_connection_through_tls(front, certificate):
    """Encrypted, verified, and nobody waits for records: replies of several are taken when they are whole."""
    address = RedisAddress(host="127.0.0.1", port=front.port, tls=True, tls_ca=str(certificate[0]))
    pool = bounded_pool(address, size=1, deadlines=PATIENT)
    client_of(pool).call("SET", "a", "x" * 500_000)
    reads = reads_over(pool)

    for _ in range(3):
        assert answer_to(reads, "a", "b") == [b"x" * 500_000, None]
    reads.close()


def test_a_polled_connection_logs_in(private_redis):
    """As a user with a password, into the database of the address."""
    with Redis(port=private_redis.port, db=3) as client:
        client.acl_setuser("narrow", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"])
        client.set("a", "3")
    address = RedisAddress(
        host="127.0.0.1", port=private_redis.port, username="narrow", password="secret", db=3
    )
    reads = reads_over(bounded_pool(address, size=1, deadlines=PATIENT))

    assert answer_to(reads, "a") == [b"3"]
    reads.close()


def test_tls_with_an_unknown_root_is_refused(front):
    """A certificate of an unknown authority is an outage, never only a warning."""
    client = client_of(
        bounded_pool(RedisAddress.from_url(f"rediss://127.0.0.1:{front.port}"), size=1, deadlines=PATIENT)
    )

    with pytest.raises(CacheUnavailable, match="tls"):
        client.ping()


@pytest.mark.parametrize("topology", ["one", "cluster", "sentinels"])
def test_a_root_of_our_own_is_believed_in_place_of_the_systems(
    front, certificate, tmp_path, monkeypatch, topology
):
    """Whoever the system trusts could otherwise stand in for the server: no byte of a login is sent there."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.public))
    ours = self_signed(tmp_path, "127.0.0.1")
    address = RedisAddress(host="127.0.0.1", port=front.port, tls=True, tls_ca=str(ours.public))
    links = {
        "one": lambda: bounded_pool(address, size=1, deadlines=PATIENT),
        "cluster": lambda: ClusterServers(
            Topology(ClusterAddress(nodes=(("127.0.0.1", front.port),), redis=address), size=1)
        ),
        "sentinels": lambda: sentinel_pool(
            SentinelAddress(sentinels=(("127.0.0.1", front.port),), service=SERVICE, redis=address), size=1
        ),
    }

    with pytest.raises(CacheUnavailable):
        client_of(links[topology]()).ping()
    assert front.encrypted == 0


def test_tls_for_another_name_is_refused(front, certificate):
    """The name is checked too."""
    address = RedisAddress(host="localhost", port=front.port, tls=True, tls_ca=str(certificate[0]))

    with pytest.raises(CacheUnavailable, match="tls"):
        client_of(bounded_pool(address, size=1, deadlines=PATIENT)).ping()


# A narrow user


def test_a_user_without_dangerous_commands_can_do_everything():
    """Its own keys and channels, nothing administrative; what INFO would say is None."""
    with RedisServer() as server:
        with Redis.from_url(server.url) as admin:
            rules = "reset on >secret ~lib:* &lib:* +@all -@dangerous -@admin"
            admin.execute_command("ACL", "SETUSER", "library", *rules.split())
        url = f"redis://library:secret@{server.host}:{server.port}/0"
        client = client_of(
            bounded_pool(RedisAddress.from_url(url), size=2, deadlines=PATIENT, client_name="library")
        )
        rows = rows_of(client)
        rows.get_or_load_many(IDENTS, load)
        snapshot = Monitor(client, Meter(time.monotonic), time.monotonic).snapshot()

        assert rows.get("7") == Row("7", 1)
        assert Counters(client=client, space=SPACE).increment("n") == 1
        assert Locks(client, KEYS).acquire("nightly") is not None
        assert pattern_drop(client, SPACE, ANY) == 31
        assert client.call("PUBLISH", KEYS.channel, "x") == 0
        assert snapshot.health.is_connected
        assert snapshot.memory[0].used_bytes is None
        assert snapshot.keyspace.key_count == 30
        assert client.state is State.CLOSED
        client.close()
