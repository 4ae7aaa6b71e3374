"""Services as processes, over stores that the test run shares."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import pytest

from tests.rig import Service, environment, migrate
from tests.servers import drop_database
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class MakeService(Protocol):
    """
    Starts a service with *settings* of the caller's.

    *folder* may have its keys already; *at_issuer* makes its address the issuer of its tokens.
    """

    def __call__(
        self, folder: Path | None = None, *, at_issuer: bool = False, **settings: str
    ) -> Service: ...


@pytest.fixture(scope="module")
def make_service(postgres_server, redis_server, tmp_path_factory) -> Iterator[MakeService]:
    """Start services, each with a migrated database and keys in Redis of its own."""
    with ExitStack() as stack:

        def make(folder: Path | None = None, *, at_issuer: bool = False, **settings: str) -> Service:
            folder = folder or tmp_path_factory.mktemp("service")
            url = postgres_server.create_database()
            stack.callback(drop_database, postgres_server.url, url)
            prefix = {"CACHE_KEY_PREFIX": f"t{uuid4().hex[:8]}"}
            env = environment(url, redis_server.url, folder, **prefix | settings)
            migrate(env)
            service = Service(env, folder, entry=PATIENT)
            if at_issuer:
                service.env["JWT_ISSUER"] = service.url
            return stack.enter_context(service)

        yield make


@pytest.fixture(scope="module")
def service(make_service: MakeService) -> Service:
    """One service of two workers for all tests of a module; some modules give it settings or people."""
    return make_service()
