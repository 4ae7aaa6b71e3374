"""The application: blueprints, error table, and what is done for every request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from flask import Blueprint as PlainBlueprint
from flask import Flask

from authsvc.api import (
    audit,
    auth,
    batch,
    cache_admin,
    feed,
    health,
    me,
    oauth2,
    preferences,
    sessions,
    users,
)
from authsvc.api.frame import docs, errors, hooks
from authsvc.api.frame.bodies import READ_BYTES, Blueprint
from authsvc.api.frame.context import EXTENSION
from authsvc.api.frame.cors import CrossOrigin
from authsvc.api.frame.metrics import MetricsPort
from authsvc.api.frame.plain import PlainRequests
from authsvc.api.grouped import GroupedRoutes
from authsvc.api.lane import PROFILE_PATH, CheckLane, ProfileReads
from authsvc.api.verify import CheckAnswers, ForwardAuth
from authsvc.services import Services
from authsvc.settings import RegistrationMode

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BLUEPRINTS = (
    auth.blp,
    me.blp,
    preferences.blp,
    sessions.blp,
    users.blp,
    batch.blp,
    cache_admin.blp,
    oauth2.blp,
    feed.blp,
    audit.blp,
    health.blp,
)
#: Left out of the duration metrics: frequent probes would hide all other requests.
UNTIMED = ("/v1/health/.*", "/health")


class PlainFlask(Flask):
    """Flask for views that are plain functions: it looks a dozen times in each request whether they are."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """*func* as it is."""
        return func


@dataclass(frozen=True, slots=True)
class Application:
    """The WSGI application with the services that the server starts and closes around it."""

    flask: Flask
    services: Services
    wsgi: WSGIApplication
    #: The check lane for the server's loop; None where threads answer all checks.
    lane: CheckLane | None
    #: The routes that are answered for many requests at once; None where each request is traced by itself.
    grouped: GroupedRoutes | None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Offer the request to the metrics port, then to the token checks, then to Flask."""
        return self.wsgi(environ, start_response)


def _by_setting(services: Services) -> Iterator[Blueprint]:
    """Blueprints that depend on the settings; the code of a part that is off is not loaded."""
    if services.recovery is not None:
        yield from _recovery(services.registration)
    if services.machines is not None:
        from authsvc.api import clients

        yield clients.blp
        yield oauth2.machines
    if services.second_factors is not None:
        from authsvc.api import factors

        yield from (factors.blp, factors.me, factors.admin)
    if services.passkeys is not None:
        from authsvc.api import passkeys

        yield from (passkeys.me, passkeys.blp, passkeys.well_known)
    if services.registration is not RegistrationMode.QUIET:
        yield auth.registration


def _recovery(registration: RegistrationMode) -> Iterator[Blueprint]:
    from authsvc.api import recovery

    yield from (recovery.blp, recovery.me, recovery.admin)
    if registration is not RegistrationMode.OFF:
        yield recovery.invitations
    if registration is RegistrationMode.QUIET:
        yield recovery.quiet


def create_app(services: Services) -> Application:
    """The whole application over *services*."""
    has_levels = services.second_factors is not None
    has_machines = services.machines is not None
    app = PlainFlask(__name__, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=READ_BYTES, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask's default provider has it
    app.url_map.merge_slashes = False
    app.extensions[EXTENSION] = services
    services.metrics.instrument(app, excluded_paths=UNTIMED)
    services.tracing.instrument(app)
    described = (*BLUEPRINTS, *_by_setting(services))
    undescribed = (health.alias, oauth2.of_path, docs.root)
    for blueprint in chain[PlainBlueprint](described, undescribed):
        app.register_blueprint(blueprint)
    if services.http.api_docs:
        docs.publish(
            app,
            described,
            issuer=services.introspection.profile.issuer,
            has_machines=has_machines,
            has_levels=has_levels,
        )
    hooks.install(app)
    errors.install(app)
    answers = CheckAnswers(
        services.checks, services.tracing.trace_id, has_levels=has_levels, has_machines=has_machines
    )
    by_path = {path: services.tracing.around(answers, path) for path in _check_paths(services)}
    shared = CrossOrigin(PlainRequests(app.wsgi_app), frozenset(services.http.cors_origins))
    checked = ForwardAuth(by_path, shared)
    app.wsgi_app = MetricsPort(checked, services.metrics, services.http.metrics_port)  # type: ignore[method-assign]
    # Flask alone makes the spans of a trace.
    grouped = None if services.tracing.is_on else GroupedRoutes(services, auth.GROUPED)
    return Application(app, services, app, _lane(services), grouped)


def _check_paths(services: Services) -> tuple[str, ...]:
    return docs.check_paths(has_machines=services.machines is not None)


def _lane(services: Services) -> CheckLane | None:
    if services.polled is None:
        return None
    return CheckLane(
        checks=services.checks,
        index=services.polled,
        ring=services.ring,
        sample=services.tracing.sample,
        metrics_port=services.http.metrics_port,
        check_paths=_check_paths(services),
        profiles=_profiles(services) if services.polled.has_users else None,
        has_levels=services.second_factors is not None,
        has_machines=services.machines is not None,
    )


def _profiles(services: Services) -> ProfileReads:
    return ProfileReads(
        users=services.users,
        count=services.metrics.count_of("GET", PROFILE_PATH, 200),
        is_shared=bool(services.http.cors_origins),
    )
