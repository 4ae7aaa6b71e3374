"""Commands that run or check the service: serve, dev, db, config."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from authsvc.cli import importing
from authsvc.observability import logs
from authsvc.server import ServerOptions, ServerTimings, listening_problems, serve
from authsvc.settings import Settings, SettingsError, available_cores
from authsvc.settings.development import KEYS_DIR, ensure_development_files
from authsvc.settings.model import settings_page
from authsvc.wiring.preflight import (
    Findings,
    factor_problems,
    inspect,
    local_problems,
    ownership_problems,
    stored_warnings,
)

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

log = logging.getLogger(__name__)

STDERR = 2


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``serve``."""
    parser.set_defaults(run=run_serve)


def add_dev(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``dev``."""
    parser.set_defaults(run=run_dev)


def add_db(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``db``."""
    from authsvc.cli import prune

    database = parser.add_subparsers(required=True, metavar="ACTION")
    upgrade = database.add_parser("upgrade", help="bring the schema to the revision that this version needs")
    upgrade.set_defaults(run=run_upgrade)
    prune.add_action(database)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``config``."""
    config = parser.add_subparsers(required=True, metavar="ACTION")
    check = config.add_parser("check", help="name every problem of the settings at once")
    how = check.add_mutually_exclusive_group()
    how.add_argument("--connect", action="store_true", help="also ask the database and Redis")
    how.add_argument(
        "--manifest", metavar="FILE", help="check rendered Kubernetes YAML instead (- reads stdin)"
    )
    check.set_defaults(run=run_check)
    page = config.add_parser("docs", help="print the page that is docs/settings.md")
    page.set_defaults(run=run_page)


def run_serve(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Serve until SIGTERM; if something is wrong, lists all problems and does not start."""
    settings = Settings.from_env(env, cpu_count=available_cores())
    findings = inspect(settings, options.timings)
    found = (*listening_problems(settings.http), *findings.problems)
    if found:
        raise SettingsError(found)
    return _serve(options, settings, findings.warnings)


def run_dev(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """
    Serve for development; missing parts are embedded: SQLite, Redis in memory, generated keys and secrets.
    """
    settings = _development(env)
    if settings.redis.is_in_memory and find_spec("fakeredis") is None:
        raise ValueError(
            "Redis in memory needs packages of development: start it by `make run`, or set REDIS_URL"
        )
    if found := tuple(listening_problems(settings.http)):
        raise SettingsError(found)
    _upgrade(options, settings)
    timings = options.timings
    of_redis = () if settings.redis.is_in_memory else ownership_problems(settings, timings)
    if found := (*of_redis, *factor_problems(settings, timings)):
        raise SettingsError(found)
    return _serve(options, settings, stored_warnings(settings, timings))


def run_upgrade(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Upgrade the schema; safe when several start at once."""
    logs.configure("warning", "console", fd=STDERR)
    revision = _upgrade(options, Settings.from_env(env))
    print(f"the database is at revision {revision}", file=sys.stderr)
    return 0


def run_check(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Check the settings; with ``--connect`` also database and Redis; or check a manifest instead."""
    if options.manifest:
        return _check_manifest(options.manifest)
    settings = Settings.from_env(env)
    findings = inspect(settings, options.timings) if options.connect else Findings(local_problems(settings))
    if findings.problems:
        raise SettingsError(findings.problems)
    for warning in (*settings.warnings, *findings.warnings):
        _warn(warning)
    print("the settings are complete and consistent", file=sys.stderr)
    return 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _check_manifest(name: str) -> int:
    from authsvc.cli.manifest import check_manifest

    text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    print(f"the manifest fits: {check_manifest(text, _warn)}", file=sys.stderr)
    return 0


def run_page(_options: argparse.Namespace, _env: Mapping[str, str]) -> int:
    """Print the settings page that is kept in ``docs/settings.md``."""
    print(settings_page(), end="")
    return 0


def _development(env: Mapping[str, str]) -> Settings:
    """The settings of development; creates the files that they name on first start."""
    from authsvc.cli.keys import generate_key

    development = {**env, "AUTHSVC_ENV": "development"}
    development |= ensure_development_files(development)
    folder = Path(development.get("JWT_KEYS_DIR", KEYS_DIR))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not any(folder.glob("*.pem")):
        generate_key(folder, "ES256")
    return Settings.from_env(development)


def _upgrade(options: argparse.Namespace, settings: Settings) -> str:
    from authsvc.store.migrations import upgrade
    from authsvc.wiring.stores import open_database

    database = open_database(settings, options.timings)
    try:
        return upgrade(database)
    finally:
        database.close()


def _serve(options: argparse.Namespace, settings: Settings, stored: Iterable[str]) -> int:
    with importing():
        from authsvc.observability.health import LastAnswers

    logs.configure(settings.log.level.value, settings.log.format.value)
    for warning in (*settings.warnings, *stored):
        log.warning("settings.warned", extra={"text": warning})

    url = f"http://{settings.http.host}:{settings.http.port}"
    log.info("service.starting", extra={"public": url, "metrics_port": settings.http.metrics_port})

    # The workers share it.
    answers = LastAnswers()

    def load() -> WSGIApplication:
        from authsvc.app import create_app
        from authsvc.wiring import build

        return create_app(build(settings, answers=answers, timings=options.timings))

    serve(server_options(settings, options.server_timings or ServerTimings()), load)


def server_options(settings: Settings, timings: ServerTimings) -> ServerOptions:
    """The options of the server, also for ``gunicorn wsgi:app``."""
    with importing():
        from authsvc.api.frame.docs import HASHING_PATHS, check_paths

    return ServerOptions(
        host=settings.http.host,
        port=settings.http.port,
        metrics_port=settings.http.metrics_port,
        workers=settings.http.workers,
        timings=timings,
        log_level=settings.log.level.value,
        figures=settings.http.figures_dir,
        bodiless=check_paths(has_machines=settings.machines.is_on),
        lengthy=HASHING_PATHS,
    )
