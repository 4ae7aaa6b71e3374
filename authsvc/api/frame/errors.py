"""The one place that turns errors into status, headers and body (RFC 9457)."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from flask import Flask, Response, g, request
from marshmallow import Schema, fields, validate
from werkzeug.exceptions import BadRequest, HTTPException

from authsvc.domain import errors
from authsvc.domain.accounts.factors import AnswerKind
from authsvc.domain.ratelimits import policy_header, state_header
from authsvc.domain.values.problems import MEDIA_TYPE, problem_body

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

CHALLENGE = 'Bearer realm="authsvc"'
#: Headers of every error answer that is made without Flask.
NOT_STORED = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
#: Codes whose challenge differs from CHALLENGE.
CHALLENGES: dict[type[errors.AuthError], str] = {
    errors.TokenInvalid: f'{CHALLENGE}, error="invalid_token"',
    errors.ClientRefused: 'Basic realm="authsvc", charset="UTF-8"',
    errors.CodeInvalid: "Bearer",
    errors.CounterNotRisen: "Bearer",
    errors.ScopeMissing: f'{CHALLENGE}, error="insufficient_scope"',
}

#: The status of every AuthError; a test asserts that none is missing.
STATUSES: dict[type[errors.AuthError], int] = {
    errors.TokenMissing: 401,
    errors.TokenInvalid: 401,
    errors.InvalidCredentials: 401,
    errors.RefreshInvalid: 401,
    errors.RefreshReused: 401,
    errors.SessionOver: 401,
    errors.CodeInvalid: 401,
    errors.CounterNotRisen: 401,
    errors.StepUpRequired: 401,
    errors.ClientRefused: 401,
    errors.RightMissing: 400,
    errors.GrantUnsupported: 400,
    errors.InvalidScope: 400,
    errors.Forbidden: 403,
    errors.ScopeMissing: 403,
    errors.EmailUnverified: 403,
    errors.SecondFactorRequired: 403,
    errors.RegistrationClosed: 403,
    errors.WrongPassword: 403,
    errors.NotFound: 404,
    errors.EmailTaken: 409,
    errors.TooMany: 409,
    errors.PasskeyKnown: 409,
    errors.LastAdmin: 409,
    errors.PreconditionFailed: 412,
    errors.Invalid: 422,
    errors.RateLimited: 429,
    errors.HashingBusy: 503,
    errors.StoreUnavailable: 503,
}

DETAILS = {
    "token_missing": "Send an access token in the Authorization header, as a bearer token.",
    "token_invalid": "The access token is not valid. Get a new one.",
    "invalid_credentials": "E-mail address or password is wrong.",
    "refresh_invalid": "The refresh token is not valid. Log in again.",
    "refresh_reused": "The refresh token was used before; its session has been ended. Log in again.",
    "session_ended": "The session has ended. Log in again.",
    "code_invalid": "The code, link or challenge is wrong, used or expired. Try another one, or begin again.",
    "step_up_required": "Authenticate again with a step-up; WWW-Authenticate says which level is needed.",
    "invalid_client": "Authenticate as a registered client, with HTTP Basic in the Authorization header.",
    "unauthorized_client": "This client may not do that. An admin can give it the right.",
    "unsupported_grant_type": "The only supported grant type is client_credentials.",
    "invalid_scope": "This client does not have that scope. Ask for those that it has, one space between.",
    "forbidden": "The caller may not do that: it takes another role, right, kind of token or proof.",
    "insufficient_scope": "The access token lacks a scope. Get one that has it.",
    "email_unverified": "Verify your e-mail address first, with the code that was mailed to you.",
    "second_factor_required": "The password is right. Answer the challenge with a second factor.",
    "registration_closed": "Accounts are made by invitation or by the operators.",
    "wrong_password": "The current password is wrong.",
    "not_found": "There is nothing here.",
    "email_taken": "Another account has this e-mail address. Choose another one.",
    "too_many": "There are as many of them as there may be: remove one first.",
    "passkey_known": "This passkey is registered already. Register another one.",
    "last_admin": "The last active admin cannot be demoted, disabled or deleted. Make another one first.",
    "precondition_failed": "It has changed since you read it. Read it again.",
    "validation_failed": "One or more fields are wrong: `errors` says which, and why.",
    "rate_limited": "Too many attempts. Try again later.",
    "busy": "Too many passwords are being checked right now. Try again shortly.",
    "unavailable": "The service cannot answer right now. Try again shortly.",
    "malformed_request": "The body is not JSON that this service accepts.",
    "method_not_allowed": "This method is not allowed here.",
    "too_large": "The body is larger than 64 KiB.",
    "unsupported_media_type": "Send JSON in UTF-8, uncompressed, with the Content-Type that is documented.",
    "internal_error": "Something went wrong. The request id helps to find out what.",
}

#: Errors below this path have the form of RFC 6749.
OAUTH_PREFIX = "/v1/oauth2/"
#: Texts of OAuth errors; they have no character that RFC 6749 §5.2 forbids.
_OAUTH_DETAILS = {
    400: "Send one form with the parameters of the route, none twice, and the secret in the header alone.",
    401: DETAILS["invalid_client"],
    404: DETAILS["not_found"],
    405: DETAILS["method_not_allowed"],
    413: DETAILS["too_large"],
    415: "Send a form in UTF-8, uncompressed: application/x-www-form-urlencoded.",
    429: DETAILS["rate_limited"],
    500: DETAILS["internal_error"],
    503: DETAILS["unavailable"],
}
#: Codes that RFC 6749 §5.2 defines; other errors get a code by their status.
_OAUTH_CODES = {errors.RightMissing.code, errors.GrantUnsupported.code, errors.InvalidScope.code}

#: What may be the name of a field, or an index in a list.  Callers choose names, too: a name that does not
#: look like one, such as markup or a secret in the wrong place, is not repeated in an answer.
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}|[0-9]{1,4}")

#: marshmallow's nested messages.
Messages = list[str] | dict[str, "Messages"]

_HTTP_CODES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
}
#: Headers of werkzeug's errors that are copied to the answer.
_PASSED_ON = {"Allow", "Accept-Encoding"}


class Shape(Schema):
    """
    A schema that is never copied, because none of its instances is ever changed.

    flask-smorest copies what it knows about a view with each decorator, else with all schemas and fields.
    """

    def __deepcopy__(self, _memo: dict[int, object]) -> Self:
        """Return the same."""
        return self


class ProblemView(Shape):
    """Every error (RFC 9457); ``code`` is stable."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True)
    request_id = fields.String(required=True)
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))
    challenge = fields.String(metadata={"description": "Only with `second_factor_required`, as the next."})
    expires_in = fields.Integer(metadata={"description": "Seconds."})
    methods = fields.List(fields.String(validate=validate.OneOf(tuple(AnswerKind))))


class OAuthErrorView(Shape):
    """An error of an OAuth endpoint (RFC 6749 §5.2)."""

    error = fields.String(required=True)
    error_description = fields.String(required=True)


class NotJson(BadRequest):
    """A body that is not strict JSON; *reason* goes to the caller and repeats nothing of the body."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One error answer, with or without Flask."""

    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)
    errors: dict[str, list[str]] | None = None
    #: Further members of the body.
    members: dict[str, Any] = field(default_factory=dict)
    #: Appended to the text of the code.
    reason: str = ""

    def body(self, request_id: str) -> bytes:
        """The problem details; they repeat nothing of the request."""
        detail = f"{DETAILS[self.code][:-1]}: {self.reason}." if self.reason else DETAILS[self.code]
        return problem_body(
            self.status,
            self.code,
            detail=detail,
            request_id=request_id,
            errors=self.errors,
            members=self.members,
        )

    def oauth_body(self) -> bytes:
        """The same in the form of RFC 6749 §5.2."""
        if self.code in _OAUTH_CODES:
            members = {"error": self.code, "error_description": DETAILS[self.code]}
        else:
            description = _OAUTH_DETAILS.get(self.status, DETAILS[self.code])
            members = {"error": _oauth_code(self.status), "error_description": description}
        return json.dumps(members).encode() + b"\n"


def answer(
    problem: Problem, request_id: str, environ: WSGIEnvironment, start_response: StartResponse
) -> tuple[bytes]:
    """Answer *problem* without Flask (PEP 3333)."""
    body = problem.body(request_id)
    headers = [
        ("Content-Type", MEDIA_TYPE),
        ("Content-Length", str(len(body))),
        ("X-Request-Id", request_id),
        *problem.headers.items(),
        *NOT_STORED,
    ]
    start_response(f"{problem.status} {HTTPStatus(problem.status).phrase}", headers)
    return (b"" if environ.get("REQUEST_METHOD") == "HEAD" else body,)


def problem_of(error: errors.AuthError) -> Problem:
    """The answer to *error*."""
    status = STATUSES[type(error)]
    details = error.errors if isinstance(error, errors.Invalid) else None
    return Problem(
        status=status,
        code=error.code,
        headers=_headers(error, status),
        errors=details,
        members=_members(error),
    )


def install(app: Flask) -> None:
    """Answer every error of *app* as a problem."""
    app.register_error_handler(errors.AuthError, _refuse)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _fail)


def _members(error: errors.AuthError) -> dict[str, Any]:
    """Further members of the body for *error*."""
    if not isinstance(error, errors.SecondFactorRequired):
        return {}
    return {"challenge": error.challenge, "expires_in": error.expires_in, "methods": error.methods}


def _headers(error: errors.AuthError, status: int) -> dict[str, str]:
    """Headers that the status requires."""
    if isinstance(error, errors.StepUpRequired):
        return {"WWW-Authenticate": f"Bearer {error.requirement.challenge}"}
    if type(error) in CHALLENGES:
        return {"WWW-Authenticate": CHALLENGES[type(error)]}
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": CHALLENGE}
    if isinstance(error, errors.RateLimited):
        attempt = error.attempt
        return {
            "Retry-After": str(max(1, attempt.reset_s)),
            "RateLimit-Policy": policy_header(attempt.limit),
            "RateLimit": state_header(attempt),
        }
    if isinstance(error, errors.HashingBusy | errors.StoreUnavailable):
        return {"Retry-After": str(error.retry_after_s)}
    return {}


def _respond(problem: Problem) -> Response:
    is_oauth = request.path.startswith(OAUTH_PREFIX)
    body = problem.oauth_body() if is_oauth else problem.body(g.request_id)
    response = Response(body, problem.status, content_type="application/json" if is_oauth else MEDIA_TYPE)
    response.headers.update(problem.headers)
    return response


def _oauth_code(status: int) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "invalid_client"
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return "temporarily_unavailable"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"


def _refuse(error: errors.AuthError) -> Response:
    return _respond(refusal(error))


def refusal(error: errors.AuthError) -> Problem:
    """Return the answer to an AuthError of the domain; outages are logged."""
    if isinstance(error, errors.StoreUnavailable):
        log.warning("request.unavailable", extra={"cause": error.store})
    return problem_of(error)


def _refuse_http(error: HTTPException) -> Response:
    """Answer an HTTP error of Flask, werkzeug or webargs."""
    status = _status(error)
    headers = {name: _in_order(value) for name, value in error.get_headers() if name in _PASSED_ON}
    messages = getattr(error, "data", {}).get("messages")
    problem = Problem(
        status=status,
        code=_HTTP_CODES.get(status, "internal_error"),
        headers=headers,
        errors=flat(messages) if messages else None,
        reason=error.reason if isinstance(error, NotJson) else "",
    )
    return _respond(problem)


def _in_order(items: str) -> str:
    """
    *items* in alphabetical order: werkzeug takes them from a set, whose order differs between processes.
    """
    return ", ".join(sorted(items.split(", ")))


def _status(error: HTTPException) -> int:
    """The status of *error* if this service documents it, else the closest documented one."""
    if error.code in _HTTP_CODES:
        return error.code
    is_theirs = error.code is not None and error.code < HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.BAD_REQUEST if is_theirs else HTTPStatus.INTERNAL_SERVER_ERROR


def _fail(error: Exception) -> Response:
    return _respond(failure(error))


def failure(error: Exception) -> Problem:
    """Return the answer to an unexpected error: details go to the log, the caller gets the request id."""
    log.error("request.crashed", exc_info=error)
    return Problem(status=500, code="internal_error")


def flat(messages: Messages, path: str = "", *, whole: str = "body") -> dict[str, list[str]]:
    """
    marshmallow's nested messages as field path -> messages.

    Sorted, because marshmallow's order of unknown names differs between processes. The location is not part
    of the path; errors of the whole input are listed under *whole*.
    """
    if isinstance(messages, list):
        return {path or whole: [str(message) for message in messages]}
    found: dict[str, list[str]] = {}
    for name, inner in messages.items():
        is_location = not path and name in {"json", "query"}
        is_part = not is_location and _FIELD.fullmatch(str(name))
        inner_path = f"{path}.{name}".lstrip(".") if is_part else path
        found.update(flat(inner, inner_path, whole="query" if is_location and name == "query" else whole))
    return dict(sorted(found.items()))
