"""The same client over a cluster, over Sentinels, through TLS, and as a narrow user."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis
from redis.crc import key_slot

from authsvc.cache import (
    ANY,
    MISSING,
    Aside,
    CacheClient,
    CacheError,
    CacheMisuse,
    CacheUnavailable,
    CircuitBreaker,
    ClusterAddress,
    ClusterServers,
    Counters,
    Entry,
    KeySpace,
    Locks,
    Meter,
    Monitor,
    Proof,
    RedisAddress,
    SentinelAddress,
    Shape,
    State,
    Tagging,
    Tags,
    Topology,
    Values,
    bounded_pool,
    each_server,
    pattern_drop,
    sentinel_pool,
)
from tests.clusters import SERVICE, SLOTS, TlsFront, cluster, watched
from tests.processes import wait_until
from tests.servers import RedisServer

KEYS = KeySpace("lib")
SPACE = KEYS.space("row", ttl_s=60)


@dataclass(frozen=True)
class Row:
    """One row and its version."""

    id: str
    version: int


SHAPE = Shape(
    schema=1,
    dump=lambda row: Entry({"id": row.id}, row.version),
    load=lambda entry: Row(str(entry.fields["id"]), entry.row_version),
)
IDENTS = [str(number) for number in range(30)]


def client_of(pool) -> CacheClient:
    """Return a client over *pool* or link, as a service would build it."""
    return CacheClient(pool, breaker=CircuitBreaker(clock=time.monotonic), clock=time.monotonic)


def rows_of(client) -> Aside[Row]:
    """Return a cache of rows."""
    return Aside(client=client, space=SPACE, shape=SHAPE, lease_ms=5000, rng=random.Random(1).random)


def load(idents):
    """Load any rows."""
    return {ident: Row(ident, 1) for ident in idents}


# A cluster


@pytest.fixture(scope="module")
def three():
    """Return a cluster of three primaries."""
    with cluster() as running:
        yield running


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def spread(request, three):
    """Return a client of an empty cluster that was told of one of its servers."""
    address = ClusterAddress(nodes=three.addresses[:1])
    client = client_of(ClusterServers(Topology(address, size=4, protocol=request.param)))
    for server in each_server(client):
        server.call("FLUSHALL")
    yield client
    client.close()


def test_keys_of_all_servers_are_one_round_trip_each(spread):
    """MGET is split by slot; commands and replies keep their order."""
    spread.pipeline([("SET", ident, ident) for ident in IDENTS])

    values = spread.mget([*IDENTS, "none", "0"]).values

    assert values == [*(ident.encode() for ident in IDENTS), None, b"0"]
    sizes = [int(str(server.call("DBSIZE"))) for server in each_server(spread)]
    assert (len(sizes), min(sizes) > 0, sum(sizes)) == (3, True, len(IDENTS))


def test_scripts_run_in_a_pipeline_across_servers(spread):
    """Which redis-py's own cluster pipeline refuses."""
    script = "return redis.call('INCRBY', KEYS[1], ARGV[1])"

    replies = spread.pipeline([("EVAL", script, 1, ident, int(ident) + 1) for ident in IDENTS]).values

    assert replies == [int(ident) + 1 for ident in IDENTS]


def test_the_first_error_is_raised_and_the_rest_is_done(spread):
    """Also on the other servers; the connections stay in step."""
    spread.call("RPUSH", "0", "x")
    with pytest.raises(CacheMisuse):
        spread.pipeline([("INCR", ident) for ident in IDENTS])

    assert spread.mget(IDENTS).values == [None] + [b"1"] * 29


def test_a_cache_works_across_a_cluster(spread):
    """Batch, single, invalidation by key, tag and pattern, counters, locks."""
    tags = Tags(client=spread, space=KEYS.space("tag", ttl_s=600))
    rows = replace(
        rows_of(spread), tagging=Tagging(tags=tags, by=lambda ident: (f"parity-{int(ident) % 2}",))
    )

    first = rows.get_or_load_many(IDENTS, load)
    rows.drop(["0"])
    tags.drop("parity-1")
    left = [ident for ident in IDENTS if rows.get(ident) is not MISSING]

    assert first == load(IDENTS)
    assert left == [ident for ident in IDENTS[1:] if int(ident) % 2 == 0]
    assert pattern_drop(spread, SPACE, ANY) == 29
    assert Counters(client=spread, space=SPACE).increment("n") == 1
    assert Locks(spread, KEYS).acquire("nightly") is not None
    assert Monitor(spread, Meter(time.monotonic), time.monotonic).keyspace().key_count == 4


def test_a_marker_vouches_for_its_own_slot_alone(spread):
    """Another server may have lost what the marker's server has."""
    rows = rows_of(spread)
    rows.get_or_load_many(IDENTS, load)
    marker = f"{{{SPACE.key('7')}}}:marker"
    spread.call("SET", marker, "yes")
    proven = replace(rows, proof=Proof(marker_key=marker, trusted=lambda marker, _: marker == b"yes"))

    assert proven.get("7") == Row("7", 1)
    assert proven.get("8") is MISSING
    assert proven.get_or_load("8", lambda ident: Row(ident, 2)) == Row("8", 2)
    assert rows.get("8") == Row("8", 1)


def test_generations_rise_over_all_servers(spread):
    """One order for the connections of a whole cluster; suspicion reaches all of them."""
    opened = spread.connections.fill()
    before = spread.connections.generation
    spread.connections.suspect()
    after = spread.mget(IDENTS).generation

    assert opened == 12
    assert after > before


def test_a_slot_that_moves_is_followed(three, spread):
    """While it moves, key by key, and afterwards; nothing counts twice."""
    slot = key_slot(b"moving")
    origin = slot * 3 // SLOTS
    target = (origin + 1) % 3
    spread.pipeline([("INCR", "moving"), ("INCR", "{moving}:b")])
    ids = [three.ask(index, "CLUSTER", "MYID").decode() for index in (origin, target)]

    three.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    three.ask(origin, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    node = three.nodes[target]
    three.ask(origin, "MIGRATE", node.host, node.port, "moving", 0, 1000)
    during = spread.pipeline([("INCR", "moving"), ("INCR", "{moving}:b")]).values
    three.migrate_keys(slot, origin, target)
    for index in (target, origin):
        three.ask(index, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    after = spread.pipeline([("INCR", "moving"), ("INCR", "{moving}:b")]).values
    three.move_slot(slot, target, origin)

    assert (during, after) == ([2, 2], [3, 3])


def test_without_a_cluster_the_refusal_is_soon(three):
    """Nobody there at all: an outage like any other."""
    client = client_of(ClusterServers(Topology(ClusterAddress(nodes=(("127.0.0.1", 1),)), size=1)))
    began = time.monotonic()

    with pytest.raises(CacheUnavailable, match="refused"):
        client.ping()
    assert time.monotonic() - began < 1
    assert client.connections.fill() == 0


def test_a_lost_server_costs_its_own_keys(three):
    """The others' are served; when it is back everything is."""
    client = client_of(ClusterServers(Topology(ClusterAddress(nodes=three.addresses), size=2)))
    client.pipeline([("SET", ident, ident) for ident in IDENTS])
    third = [ident for ident in IDENTS if key_slot(ident.encode()) >= SLOTS * 2 // 3]
    client.connections.fill()
    before = client.mget(IDENTS).generation
    three.nodes[2].pause()
    began = time.monotonic()
    with pytest.raises(CacheUnavailable):
        client.mget(third)
    took_s = time.monotonic() - began
    other, generation = client.mget([ident for ident in IDENTS if ident not in third])
    three.nodes[2].resume()

    def is_back():
        with suppress(CacheError):
            return client.mget(third).values == [ident.encode() for ident in third]
        return False

    assert took_s < 1
    assert None not in other
    assert generation <= before  # the other servers' connections stay, and what was proven over them
    wait_until(is_back, what="all keys again")
    client.close()


# Sentinels


def test_a_failover_is_followed_and_seen(record_property):
    """The primary is killed; writes go to the new one soon, over connections with higher stamps."""
    with watched() as servers:
        address = SentinelAddress(sentinels=servers.addresses, service=SERVICE)
        client = client_of(sentinel_pool(address, size=4))
        values = Values(client=client, space=SPACE)
        values.set("7", "before")
        wait_until(lambda: _has(servers.replica, SPACE.key("7")), what="replication")
        before = client.mget([SPACE.key("7")]).generation

        servers.primary.kill()
        began = time.monotonic()
        wait_until(lambda: _can_write(values), what="writes again", timeout_s=20)
        took_s = time.monotonic() - began

        assert values.get("7") == "before"
        assert client.mget([SPACE.key("7")]).generation > before
        assert took_s < 10
        record_property("writes_again_s", round(took_s, 2))
        client.close()


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
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "library")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture
def front(private_redis, certificate):
    """Return TLS in front of a server."""
    with TlsFront(private_redis, *certificate) as front:
        yield front


def test_tls_with_a_known_root(front, certificate):
    """Encrypted, verified, and otherwise the same."""
    address = RedisAddress(host="127.0.0.1", port=front.port, tls=True, tls_ca=str(certificate[0]))
    client = client_of(bounded_pool(address, size=2))
    client.call("SET", "a", "x" * 100_000)

    assert client.mget(["a"]).values == [b"x" * 100_000]
    client.close()


def test_tls_with_an_unknown_root_is_refused(front):
    """A certificate that nobody vouches for is an outage, never a warning."""
    client = client_of(bounded_pool(RedisAddress.from_url(f"rediss://127.0.0.1:{front.port}"), size=1))

    with pytest.raises(CacheUnavailable, match="refused"):
        client.ping()


def test_tls_for_another_name_is_refused(front, certificate):
    """The name is checked too."""
    address = RedisAddress(host="localhost", port=front.port, tls=True, tls_ca=str(certificate[0]))

    with pytest.raises(CacheUnavailable, match="refused"):
        client_of(bounded_pool(address, size=1)).ping()


# A narrow user


def test_a_user_without_dangerous_commands_can_do_everything():
    """Its own keys and channels, nothing administrative; what INFO would say is None."""
    with RedisServer() as server:
        with Redis.from_url(server.url) as admin:
            rules = "reset on >secret ~lib:* &lib:* +@all -@dangerous -@admin"
            admin.execute_command("ACL", "SETUSER", "library", *rules.split())
        url = f"redis://library:secret@{server.host}:{server.port}/0"
        client = client_of(bounded_pool(RedisAddress.from_url(url), size=2, client_name="library"))
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
