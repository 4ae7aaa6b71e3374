"""Ways to break Redis, each a block: broken inside, mended at its end."""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import ResponseError

from tests.processes import HOST, wait_until
from tests.servers import RedisServer
from tests.servers.proxy import Mode, Rule, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.fault.world import World

#: A dump of so many keys takes half a minute to read.
LOADING_KEYS, LOADING_US_PER_KEY = 1500, 20_000
#: Half of what is read between two looks at the clients: LOADING is answered in time.
LOADING_KEY_BYTES = 512
#: Between two rounds of a storm.
GUST_S = 0.05


@contextmanager
def killed(world: World) -> Iterator[None]:
    """SIGKILL, and later an empty one on the same port."""
    world.redis.kill()
    try:
        yield
    finally:
        world.redis.start()


@contextmanager
def hung(world: World) -> Iterator[None]:
    """Connections are accepted, nothing is answered."""
    world.redis.pause()
    try:
        yield
    finally:
        world.redis.resume()


@contextmanager
def restarted_empty(world: World) -> Iterator[None]:
    """Killed, and back at once with nothing."""
    world.redis.kill()
    world.redis.start()
    yield


@contextmanager
def restored(world: World) -> Iterator[None]:
    """Killed, and back with what it held a moment ago, its marker still fresh."""
    member = world.log_in("forgotten")
    dump = world.redis.save_dump()
    world.log_out_in_vain(member)
    world.redis.restore(dump)
    yield


@contextmanager
def flushed(world: World) -> Iterator[None]:
    """Everything goes; the connections stay."""
    with world.redis_admin() as client:
        client.flushall()
    yield


@contextmanager
def scripts_flushed(world: World) -> Iterator[None]:
    """The server forgets every script."""
    with world.redis_admin() as client:
        client.script_flush()
    yield


@contextmanager
def read_only(world: World) -> Iterator[None]:
    """A replica of nobody: reads are answered, writes are READONLY."""
    with world.redis_admin() as client:
        client.execute_command("REPLICAOF", world.redis.host, "1")
        try:
            yield
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def loading(world: World) -> Iterator[None]:
    """Restarted, and it reads its dump for as long as the block takes; then empty."""
    with world.redis_admin() as client:
        client.mset({f"filler:{n}": secrets.token_hex(LOADING_KEY_BYTES) for n in range(LOADING_KEYS)})
    dump = world.redis.save_dump()
    world.redis.begin_loading(dump, us_per_key=LOADING_US_PER_KEY)
    try:
        yield
    finally:
        world.redis.kill()
        world.redis.start()


def configured(name: str, value: str, before: str) -> Callable[[World], AbstractContextManager[None]]:
    """A setting that makes it refuse writes, or evict."""

    @contextmanager
    def breaking(world: World) -> Iterator[None]:
        with world.redis_admin() as client:
            client.config_set(name, value)
            try:
                yield
            finally:
                client.config_set(name, before)

    return breaking


@contextmanager
def cannot_save(world: World) -> Iterator[None]:
    """The last snapshot failed, since a folder is in its place: writes are MISCONF."""
    in_the_way = world.redis.data / "dump.rdb"
    in_the_way.mkdir()
    with world.redis_admin() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        try:
            yield
        finally:
            client.config_set("save", "")
            in_the_way.rmdir()


@contextmanager
def busy(world: World) -> Iterator[None]:
    """A script runs and runs: all else is BUSY."""
    with world.redis_admin() as client:
        client.config_set("busy-reply-threshold", "50")
    runner = threading.Thread(target=_run_for_ever, args=(world,))
    runner.start()
    wait_until(lambda: _is_busy(world), what="a script that runs")
    try:
        yield
    finally:
        with world.redis_admin() as client:
            client.execute_command("SCRIPT", "KILL")
        runner.join()


def _run_for_ever(world: World) -> None:
    with world.redis_admin(timeout_s=None) as client, suppress(ResponseError):
        client.eval("while true do end", 0)


def _is_busy(world: World) -> bool:
    with world.redis_admin() as client:
        try:
            client.ping()
        except ResponseError:
            return True
        return False


def user_may(*, not_any_more: str, again: str) -> Callable[[World], AbstractContextManager[None]]:
    """The service's user is changed at run time, and its connections end."""

    @contextmanager
    def breaking(world: World) -> Iterator[None]:
        with world.redis_admin() as client:
            client.execute_command("ACL", "SETUSER", "default", *not_any_more.split())
            client.execute_command("CLIENT", "KILL", "USER", "default")
            try:
                yield
            finally:
                client.execute_command("ACL", "SETUSER", "default", *again.split())

    return breaking


@contextmanager
def connections_killed(world: World) -> Iterator[None]:
    """Every connection ends, again and again."""
    over = threading.Event()
    storm = threading.Thread(target=_kill_connections, args=(world, over))
    storm.start()
    try:
        yield
    finally:
        over.set()
        storm.join()


def _kill_connections(world: World, over: threading.Event) -> None:
    with world.redis_admin() as client:
        while not over.wait(GUST_S):
            client.execute_command("CLIENT", "KILL", "USER", "default")


@contextmanager
def paused(world: World) -> Iterator[None]:
    """CLIENT PAUSE: nothing is answered, to anybody, until it is over."""
    with world.redis_admin() as client:
        client.execute_command("CLIENT", "PAUSE", 3000, "ALL")
    yield
    with world.redis_admin() as client:
        client.ping()  # is answered when the pause is over


@contextmanager
def promoted(world: World) -> Iterator[None]:
    """
    A replica that missed the last writes, since its link was cut, takes over under the same address.

    At the end a new server goes on with the replica's data.
    """
    member = world.log_in("forgotten")
    with RedisServer("--user", "admin", "on", "nopass", "~*", "&*", "+@all") as replica:
        with TcpProxy(world.redis.url) as link, Redis.from_url(replica.url) as client:
            client.execute_command("REPLICAOF", HOST, link.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
            link.switch(Mode.SILENT)
            world.log_out_in_vain(member)
            world.redis.kill()
            client.execute_command("REPLICAOF", "NO", "ONE")
        with TcpProxy(replica.url, port=world.redis.port):
            yield
            dump = replica.save_dump()
        world.redis.restore(dump)


def on_the_wire(rule: Rule) -> Callable[[World], AbstractContextManager[None]]:
    """The connections of one replica are disturbed; the other's are not."""

    @contextmanager
    def breaking(world: World) -> Iterator[None]:
        world.redis_proxy.switch(rule)
        try:
            yield
        finally:
            world.redis_proxy.switch(Mode.PASS)

    return breaking
