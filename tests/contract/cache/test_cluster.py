"""The same client over a cluster of three primaries."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

import pytest
from redis.crc import key_slot

from authsvc.cache import (
    ANY,
    MISSING,
    CacheError,
    CacheMisuse,
    CacheUnavailable,
    ClusterAddress,
    ClusterServers,
    Counters,
    Locks,
    Meter,
    Monitor,
    Tagging,
    Tags,
    Topology,
    TrustCheck,
    each_server,
    pattern_drop,
)
from tests.contract.cache.clients import (
    IDENTS,
    KEYS,
    PATIENT,
    SPACE,
    Row,
    client_of,
    in_threads,
    load,
    rows_of,
)
from tests.processes import wait_until
from tests.servers.clusters import SLOTS, cluster

#: How long a server that hangs is waited for; one that does not may stand still nearly as long.
READ_S = 1.5


@pytest.fixture(scope="module")
def three():
    """Return a cluster of three primaries."""
    with cluster() as running:
        yield running


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def spread(request, three):
    """Return a client of an empty cluster that was told of one of its servers."""
    address = ClusterAddress(nodes=three.addresses[:1])
    client = client_of(ClusterServers(Topology(address, size=4, protocol=request.param, deadlines=PATIENT)))
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
    plain = rows_of(spread)
    tagging = Tagging(tags=tags, by=lambda ident: (f"parity-{int(ident) % 2}",))
    rows = replace(plain, records=replace(plain.records, tagging=tagging))

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
    proven = replace(
        rows,
        records=replace(
            rows.records, trust=TrustCheck(marker_key=marker, trusted=lambda marker, _: marker == b"yes")
        ),
    )

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
    three.ask(origin, "MIGRATE", node.host, node.port, "moving", 0, 60_000)
    during = spread.pipeline([("INCR", "moving"), ("INCR", "{moving}:b")]).values
    three.migrate_keys(slot, origin, target)
    for index in (target, origin):
        three.ask(index, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    after = spread.pipeline([("INCR", "moving"), ("INCR", "{moving}:b")]).values
    three.move_slot(slot, target, origin)

    assert (during, after) == ([2, 2], [3, 3])


def test_without_a_cluster_the_refusal_is_soon(three):
    """Nobody there at all: an outage like any other."""
    client = client_of(
        ClusterServers(Topology(ClusterAddress(nodes=(("127.0.0.1", 1),)), size=1, deadlines=PATIENT))
    )
    began = time.monotonic()

    with pytest.raises(CacheUnavailable, match="refused"):
        client.ping()
    assert time.monotonic() - began < 20
    assert client.connections.fill() == 0


def test_a_lost_server_costs_its_own_keys(three):
    """The others' are served; when it is back everything is."""
    hasty = replace(PATIENT, connect_s=READ_S, read_s=READ_S, total_s=READ_S)
    address = ClusterAddress(nodes=three.addresses)
    client = client_of(ClusterServers(Topology(address, size=2, deadlines=hasty)))
    client.pipeline([("SET", ident, ident) for ident in IDENTS])
    third = [ident for ident in IDENTS if key_slot(ident.encode()) >= SLOTS * 2 // 3]
    client.connections.fill()
    before = client.mget(IDENTS).generation
    three.nodes[2].pause()
    try:
        began = time.monotonic()
        with pytest.raises(CacheUnavailable):
            client.mget(third)
        took_s = time.monotonic() - began
        other, generation = client.mget([ident for ident in IDENTS if ident not in third])
    finally:
        three.nodes[2].resume()

    def is_back():
        with suppress(CacheError):
            return client.mget(third).values == [ident.encode() for ident in third]
        return False

    assert took_s < 20
    assert None not in other
    assert generation <= before  # the other servers' connections stay, and what was proven over them
    wait_until(is_back, what="all keys again")
    client.close()


def test_connections_that_the_server_closed_while_idle_cost_nothing(three):
    """They are remade before their next use, and nothing is sent twice."""
    client = client_of(
        ClusterServers(Topology(ClusterAddress(nodes=three.addresses), size=3, deadlines=PATIENT))
    )
    client.connections.fill()
    for node in range(3):
        three.ask(node, "CLIENT", "KILL", "TYPE", "normal")

    client.call("DEL", "{7}:n")

    assert [client.call("INCR", "{7}:n") for _ in range(3)] == [1, 2, 3]
    client.close()


def test_a_connection_that_breaks_in_use_makes_its_neighbours_suspect(three):
    """Those to the same server are remade; those to the others, and what was proven over them, stay."""
    topology = Topology(ClusterAddress(nodes=three.addresses), size=3, deadlines=PATIENT)
    client = client_of(ClusterServers(topology))
    client.connections.fill()
    before = client.connections.generation
    owner = key_slot(b"7") * 3 // SLOTS
    _, refusal = in_threads(lambda: kill_waiting(three, owner), lambda: client.call("BLPOP", "{7}:none", 50))
    client.connections.fill()

    assert str(refusal) == "refused"
    assert client.connections.generation == before + 3
    client.close()


def kill_waiting(three, node):
    """Have a server hang up on whoever waits for a list."""

    def waiting():
        lines = three.ask(node, "CLIENT", "LIST").decode().splitlines()
        return [line.split()[0].removeprefix("id=") for line in lines if " cmd=blpop " in line]

    wait_until(lambda: bool(waiting()), what="a client that waits")
    three.ask(node, "CLIENT", "KILL", "ID", waiting()[0])
