"""Checks that Redis supports what the service needs; each problem is one line."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final, cast

from redis.exceptions import AuthenticationError, ClusterCrossSlotError, NoPermissionError, ResponseError

from authsvc.cache.errors import (
    CacheError,
    CacheUnavailable,
    HandshakeRefused,
    Reason,
    SentinelsFailed,
)
from authsvc.cache.keys import KeySpace
from authsvc.cache.redis.client import CacheClient, Command, Script
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.shards import Sharded
from authsvc.settings import Problem, RedisSettings
from authsvc.store.copies.index import IndexKeys
from authsvc.store.copies.ownership import installation_id, owner_text
from authsvc.store.sql import Database

#: Keys written by the check expire after a second.
_LIFE_MS: Final = 1_000
#: All commands that the scripts of the service call.
_EVERYTHING_IN_A_SCRIPT: Final = Script(
    "redis.call('SET', KEYS[1], redis.call('TIME')[1], 'PX', ARGV[1])"
    " redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]))"
    " redis.call('GET', KEYS[1])"
    " redis.call('EXISTS', KEYS[1])"
    " redis.call('DEL', KEYS[1])"
    " redis.call('ZADD', KEYS[1], 0, 'x')"
    " redis.call('ZCARD', KEYS[1])"
    " redis.call('ZRANGE', KEYS[1], 0, 0)"
    " redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, 0)"
    " return redis.call('DEL', KEYS[1])"
)
#: A server that is full or read-only is not a wrong setting: the service starts, and reports it.
_FOR_NOW: Final = frozenset({Reason.OOM, Reason.READONLY, Reason.MISCONF, Reason.NOREPLICAS})
_LOGIN: Final = "cannot be used: the server refuses the login; check user and password"
_FOREIGN: Final = (
    "holds the data of another installation under this prefix: name another Redis, or set CACHE_KEY_PREFIX;"
    " if that installation is gone, empty Redis"
)
_DIVIDED: Final = (
    "holds data that a version with another number of shards has written: empty the cluster, or set another"
    " CACHE_KEY_VERSION"
)
_BY_REASON: Final = {
    Reason.CLUSTERDOWN: "leads to a node in cluster mode; set REDIS_CLUSTER_ENABLED and REDIS_CLUSTER_NODES,"
    " or name a single primary, or Sentinels",
    Reason.REFUSED: "cannot be used: the connection is refused or closed;"
    " check host, port and network, and whether the server expects TLS",
    Reason.UNRESOLVED: "cannot be used: its host name leads nowhere;"
    " check the spelling, and the DNS of this machine",
    Reason.TIMEOUT: "cannot be used: no answer in time;"
    " check the network, and with TLS whether the server speaks it on that port",
    Reason.LOADING: "cannot be used: the server is still loading its data; start again when it is ready",
    Reason.BUSY: "cannot be used: the server is blocked by a script; end it with SCRIPT KILL",
}
#: OpenSSL's codes for a certificate of another host, and for an expired one.
_OTHER_NAME: Final = frozenset({62, 64})
_EXPIRED: Final = 10
_SHOWN_CHARACTERS: Final = 80


def certificate_problems(redis: RedisSettings) -> Iterator[Problem]:
    """Problems of the file of trusted certificates; opens no connection."""
    if redis.ca_file is None:
        return
    try:
        ssl.create_default_context(cafile=str(redis.ca_file))
    except ssl.SSLError:
        fault = "names a file that holds no certificate in PEM format"
    except OSError as error:
        fault = f"names a file that cannot be read ({error.strerror})"
    else:
        return
    yield Problem(name="REDIS_CA_FILE", message=fault)


def redis_problems(client: CacheClient, names: Sharded[IndexKeys], redis: RedisSettings) -> Iterator[Problem]:
    """Problems of Redis; writes one or two keys on each server, which expire after a second."""
    servers: dict[str, tuple[CacheClient, IndexKeys]] = {}
    for keys in names.each:
        try:
            server = client.at(keys.marker)
        except CacheError as error:
            yield Problem(name=_name(redis), message=_about_cluster(error))
            return
        servers.setdefault(server.link.name, (server, keys))
    for server, keys in servers.values():
        if found := next(_problems(server, keys, redis), None):
            yield found
            return


def _problems(client: CacheClient, keys: IndexKeys, redis: RedisSettings) -> Iterator[Problem]:
    """Problems of the server of *client*."""
    name = _name(redis)
    for command in _trials(client, keys):
        try:
            client.call(*command)
        except CacheError as error:
            if isinstance(error, CacheUnavailable) and error.reason in _FOR_NOW:
                continue
            yield Problem(name=name, message=_message(error, command, keys.space, redis))
            return
    policy = (client.info("memory") or {}).get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        message = f"evicts keys (maxmemory-policy {policy}): revocations would be lost; set noeviction"
        yield Problem(name=name, message=message)


def ownership_problems(
    client: CacheClient, database: Database, names: Sharded[IndexKeys], redis: RedisSettings
) -> Iterator[Problem]:
    """Whether Redis has the data of another installation; reports nothing if a store is away."""
    try:
        ours = installation_id(database)
        for keys in names.each:
            found = cast("bytes | None", client.call("GET", keys.installation))
            if found not in (None, owner_text(ours, len(names.each))):
                is_divided = (found or b"").startswith(ours.encode())
                message = f"{_DIVIDED if is_divided else _FOREIGN} ({keys.installation})"
                yield Problem(name=_name(redis), message=message)
                return
    except (CacheError, StoreUnavailable):
        return


def _name(redis: RedisSettings) -> str:
    """The variable that names this Redis."""
    if redis.url:
        return "REDIS_URL"
    if redis.is_cluster:
        return "REDIS_CLUSTER_NODES"
    return "REDIS_SENTINELS" if redis.sentinels else "REDIS_HOST"


def _trials(client: CacheClient, keys: IndexKeys) -> tuple[Command, ...]:
    """
    The commands that the service sends, on two keys of one shard: a cluster would separate keys without a
    hash tag.
    """
    start = keys.space.start(keys.tag)
    one, other = f"{start}:preflight:1", f"{start}:preflight:2"
    of_cluster = (("INFO", "replication"), ("ASKING",)) if client.link.may_change_roles else ()
    return (
        ("PING",),
        *of_cluster,
        ("MGET", one, other),
        ("EXISTS", one, other),
        ("SET", one, "1", "PX", _LIFE_MS),
        _EVERYTHING_IN_A_SCRIPT.command([other], [_LIFE_MS]),
        ("ZREM", other, "x"),
        ("PTTL", one),
        ("DEL", one),
    )


def _message(error: CacheError, command: Command, keys: KeySpace, redis: RedisSettings) -> str:
    cause = error.__cause__
    if isinstance(cause, SentinelsFailed):
        return _about_sentinels(error, cause, redis)
    if isinstance(cause, HandshakeRefused):
        return _about_handshake(error, cause.__cause__)
    if isinstance(cause, AuthenticationError):
        return _LOGIN
    if redis.is_cluster and _reason(error) is Reason.CLUSTERDOWN:
        return _about_cluster(error)
    return _about_command(error, command, keys)


def _about_sentinels(error: CacheError, cause: SentinelsFailed, redis: RedisSettings) -> str:
    if cause.__cause__ is None:
        return f"name no primary for REDIS_SENTINEL_SERVICE {redis.sentinel_service}: check that name"
    if _reason(error) is Reason.DENIED:
        return (
            "cannot be used: they refuse the login, or deny its user SENTINEL MASTERS;"
            " check REDIS_SENTINEL_USERNAME, REDIS_SENTINEL_PASSWORD and their ACL"
        )
    return _about_connection(error, cause.__cause__)


def _about_handshake(error: CacheError, refusal: BaseException | None) -> str:
    if "DB index" in str(refusal):
        return "cannot be used: the server has no database of that number"
    if isinstance(refusal, NoPermissionError):
        return "cannot be used: the ACL denies its user HELLO or SELECT"
    if _reason(error) is Reason.DENIED:
        return _LOGIN
    if _reason(error) in {Reason.UNSUPPORTED, Reason.OTHER}:
        return "cannot be used: the server refuses HELLO; where it does not know it, set REDIS_PROTOCOL=2"
    return _about_connection(error, refusal)


def _about_command(error: CacheError, command: Command, keys: KeySpace) -> str:
    name = "a script" if command[0] == "EVAL" else str(command[0])
    if isinstance(error.__cause__, ClusterCrossSlotError):
        return _BY_REASON[Reason.CLUSTERDOWN]
    if _reason(error) is Reason.DENIED:
        return f"denies its user {name}, or keys under {keys.root}: see its ACL"
    if _reason(error) is Reason.UNSUPPORTED:
        return f"cannot be used: the server does not know {name}, or a command in it: is one renamed?"
    if isinstance(error.__cause__, ResponseError) and _reason(error) not in _BY_REASON:
        # These commands contain no secret, so that error replies repeat none.
        return f"cannot be used: {name} is answered with {_shown(error.__cause__)}"
    return _about_connection(error, error.__cause__)


def _about_cluster(error: CacheError) -> str:
    """Why the owner of a slot is not known."""
    if _reason(error) is Reason.CLUSTERDOWN:
        return "cannot be used: a slot of the cluster belongs to no server; see CLUSTER INFO"
    return (
        "cannot be used: no node tells who owns the slots; check hosts, ports, network, TLS and login,"
        " that the nodes are in cluster mode, and that the ACL of the user allows CLUSTER SLOTS"
    )


def _about_connection(error: CacheError, cause: BaseException | None) -> str:
    reason = _reason(error)
    if reason is Reason.TLS and cause is not None:
        return f"cannot be used: {_about_tls(cause.__context__)}"
    return _BY_REASON.get(reason, "cannot be used: what answers there is no Redis")


def _about_tls(fault: BaseException | None) -> str:
    if not isinstance(fault, ssl.SSLCertVerificationError):
        return "no TLS connection comes about; does the server speak TLS on that port?"
    if fault.verify_code in _OTHER_NAME:
        return (
            "the certificate of the server is for another name; connect by the name that it holds,"
            " which a node of a cluster must announce"
        )
    if fault.verify_code == _EXPIRED:
        return "the certificate of the server has expired"
    return (
        f"the certificate of the server is not trusted ({fault.verify_message}); name its CA in REDIS_CA_FILE"
    )


def _shown(error: BaseException) -> str:
    text = "".join(letter for letter in str(error) if letter.isprintable())
    return f'"{text[:_SHOWN_CHARACTERS]}"'


def _reason(error: CacheError) -> Reason:
    return error.reason if isinstance(error, CacheUnavailable) else Reason.OTHER
