"""Applications in this process: real PostgreSQL and Redis, or SQLite for development."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from authsvc.cli import main
from authsvc.observability import logs
from tests.api.driver import Api, MakeApi, Person
from tests.api.mailing import Postbox
from tests.rig import development, migrate
from tests.servers import drop_database
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Return the folder of the signing keys, which all applications share."""
    made: Path = tmp_path_factory.mktemp("api")
    return made


@pytest.fixture(scope="session")
def template(postgres_server, redis_server, folder) -> Iterator[str]:
    """Migrate one PostgreSQL database for the whole run; every other one is a copy of it."""
    url = postgres_server.create_database()
    migrate(development(url, redis_server.url, folder))
    yield urlsplit(url).path.removeprefix("/")
    drop_database(postgres_server.url, url)


@pytest.fixture(scope="session")
def sqlite_template(redis_server, folder) -> Path:
    """The same for SQLite: a file to copy."""
    file: Path = folder / "template.sqlite3"
    migrate(development(f"sqlite:///{file}", redis_server.url, folder))
    return file


@pytest.fixture(scope="module")
def make_module_api(postgres_server, served_redis, template, folder, request) -> Iterator[MakeApi]:
    """Build applications with settings of the caller's, each with a database and keys in Redis of its own."""
    made: list[tuple[Api, str]] = []

    def make(*, sqlite: bool = False, **settings: str) -> Api:
        if sqlite:
            copy = folder / f"{uuid4().hex}.sqlite3"
            shutil.copy(request.getfixturevalue("sqlite_template"), copy)
            url = f"sqlite:///{copy}"
        else:
            url = postgres_server.create_database(template=template)
        redis = settings.pop("REDIS_URL", served_redis)
        prefix = {"CACHE_KEY_PREFIX": f"t{uuid4().hex[:8]}"}
        api = Api(development(url, redis, folder, **prefix | settings))
        made.append((api, url))
        return api

    yield make
    for api, url in made:
        api.close()
        if url.startswith("postgresql"):
            drop_database(postgres_server.url, url)


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def api(make_module_api: MakeApi, request) -> Api:
    """
    Share one application in a module, once over each database; its users are the test's own.

    It has the settings that the module names as ``SETTINGS``.
    """
    return make_module_api(sqlite=request.param == "sqlite", **settings_of(request.module))


@pytest.fixture(scope="module")
def pg_api(make_module_api: MakeApi, request) -> Api:
    """The same over PostgreSQL alone."""
    return make_module_api(**settings_of(request.module))


def settings_of(module: ModuleType) -> dict[str, str]:
    """What the applications of a module of tests are set to."""
    settings: dict[str, str] = getattr(module, "SETTINGS", {})
    return settings


@pytest.fixture
def person(api: Api) -> Person:
    """Log somebody in."""
    return api.someone()


@pytest.fixture
def admin(api: Api) -> Person:
    """Log an admin in."""
    return api.an_admin()


@pytest.fixture(scope="module")
def postbox(api: Api) -> Postbox:
    """What the application's sender hands over."""
    return Postbox(api)


@pytest.fixture
def command(monkeypatch) -> Callable[[list[str]], int]:
    """Run ``authsvc`` in this process, and leave its logging as it is."""
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)
    return partial(main, timings=UNHURRIED)


@pytest.fixture
def operate(api, command, monkeypatch, capsys) -> Callable[..., Any]:
    """Run a command with the settings of *api*, or others: what it printed, or its message if it failed."""

    def run(*arguments: str, stdin: str = "", **settings: str) -> Any:
        with monkeypatch.context() as patched:
            for name, value in (settings or api.env).items():
                patched.setenv(name, value)
            patched.setattr("sys.stdin", io.StringIO(stdin))
            status = command([*arguments])
        printed = capsys.readouterr()
        assert (status == 0) == bool(printed.out)
        return json.loads(printed.out) if status == 0 else printed.err

    return run


@pytest.fixture
def make_api(make_module_api: MakeApi) -> MakeApi:
    """Build an application for one test."""
    return make_module_api


@pytest.fixture
def replica(api) -> Iterator[Api]:
    """Another process over the stores of *api*, which only the log tells of changes."""
    with closing(Api(api.env)) as other:
        yield other
