"""The caller's preferences: a bare JSON object with an entity tag."""

from __future__ import annotations

import re
from typing import Any

from flask import Response, jsonify, request

from authsvc.api.frame.bodies import MERGE_PATCH, Blueprint
from authsvc.api.frame.context import identity, services
from authsvc.api.frame.guards import requires
from authsvc.api.schemas.accounts import PreferencesBody, PreferencesPatch
from authsvc.domain.preferences import Condition, Preferences, entity_tag

blp = Blueprint(
    "preferences", __name__, url_prefix="/v1/me/preferences", description="The caller's preferences."
)

#: Suffixes that proxies add to the tag of an answer that they compress: Apache and Caddy ``-gzip``, Jetty
#: ``--gzip``, others ``;gzip``.
_CODING = re.compile(r"(?:--?|;)(?:gzip|br|zstd|deflate)\Z")


_TAGGED: dict[str, Any] = {"ETag": {"schema": {"type": "string"}}}
_IF_MATCH = {
    "in": "header",
    "name": "If-Match",
    "description": "Entity tags; if none is the current one, the answer is 412 and nothing is written.",
    "schema": {"type": "string"},
}


@blp.get("")
@requires("user")
@blp.response(200, PreferencesBody, headers=_TAGGED)
def read() -> Response:
    """Read the whole object."""
    return _tagged(services().preferences.get(identity().user_id))


@blp.put("")
@requires("user")
@blp.arguments(PreferencesBody)
@blp.doc(parameters=[_IF_MATCH])
@blp.response(200, PreferencesBody, headers=_TAGGED)
@blp.refuses(412, "`precondition_failed`")
def put(wanted: Preferences) -> Response:
    """Replace the object."""
    outcome = services().preferences.replace(identity().user_id, wanted, if_match=_condition())
    return _tagged(outcome.value.preferences)


@blp.patch("")
@requires("user")
@blp.arguments(PreferencesPatch, content_type=MERGE_PATCH)
@blp.doc(parameters=[_IF_MATCH])
@blp.response(200, PreferencesBody, headers=_TAGGED)
@blp.refuses(412, "`precondition_failed`")
def patch(change: Preferences) -> Response:
    """Merge a patch in (RFC 7396): null removes a member."""
    outcome = services().preferences.patch(identity().user_id, change, if_match=_condition())
    return _tagged(outcome.value.preferences)


def _tagged(preferences: Preferences) -> Response:
    response = jsonify(preferences)
    response.headers["ETag"] = entity_tag(preferences)
    return response


def _condition() -> Condition:
    """
    The request's ``If-Match``.

    RFC 9110 §13.1.1 asks for strong comparison.  But proxies that compress change the tag, and the request
    would always be refused.  Our tags are digests of the content, so a proxy's suffix can be ignored.
    """
    if "If-Match" not in request.headers:
        return Condition()
    if request.if_match.star_tag:
        return Condition(frozenset("*"))
    tags = request.if_match.as_set(include_weak=True)
    return Condition(frozenset(f'"{_CODING.sub("", tag)}"' for tag in tags if tag))
