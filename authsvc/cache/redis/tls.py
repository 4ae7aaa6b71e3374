"""TLS to Redis: whose certificates are believed."""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

from redis.connection import SSLConnection
from redis.sentinel import SentinelManagedSSLConnection

if TYPE_CHECKING:
    import socket


class TlsConnection(SSLConnection):
    """
    Believes the roots in the file ``ssl_ca_certs``, and the system's only without one.

    redis-py believes both, and reads all roots of the system for each connection: 20 ms of CPU.
    """

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        context = _context(self.ca_certs, self.certfile, self.keyfile)
        return context.wrap_socket(sock, server_hostname=self.host)


class SentinelTlsConnection(TlsConnection, SentinelManagedSSLConnection):
    """The same to the primary that the Sentinels name."""


def _context(roots: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """Files of the operator are read each time: they may be renewed while the service runs."""
    if roots is None and certificate is None:
        return _of_the_system()
    context = ssl.create_default_context(cafile=roots)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


@functools.cache
def _of_the_system() -> ssl.SSLContext:
    return ssl.create_default_context()
