"""A registered client of the application, and what it asks."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from authsvc.domain.clients import Right
from tests.api.driver import json_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from werkzeug.test import TestResponse

    from tests.api.driver import Api

INTROSPECT, REVOKE, TOKEN = "/v1/oauth2/introspect", "/v1/oauth2/revoke", "/v1/oauth2/token"
INACTIVE = {"active": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A client with its secret."""

    api: Api
    id: str
    secret: str = field(repr=False)

    @classmethod
    def of(cls, api: Api, name: str = "gateway", may: Collection[Right] = tuple(Right)) -> Self:
        """Register a new one, which may do everything unless *may* says what."""
        made = api.services.client_registry.create(name, may=may)
        return cls(api=api, id=made.client.id, secret=made.secret)

    @property
    def headers(self) -> dict[str, str]:
        """What proves who it is."""
        return basic(self.id, self.secret)

    def post(self, path: str, data: object = None, **options: Any) -> TestResponse:
        """One request with its secret; *data* is a form, or bytes of any kind."""
        headers = {**self.headers, **options.pop("headers", {})}
        return self.api.call("POST", path, data=data, headers=headers, **options)

    def introspect(self, token: str, **parameters: str) -> dict[str, Any]:
        """What is said of *token*."""
        answer = self.post(INTROSPECT, {"token": token, **parameters})
        assert (answer.status_code, answer.content_type) == (200, "application/json"), answer.text
        return json_of(answer)

    def revoke(self, token: str, **parameters: str) -> int:
        """The status of revoking *token*."""
        return self.post(REVOKE, {"token": token, **parameters}).status_code


def basic(client_id: str, secret: str) -> dict[str, str]:
    """The header of HTTP Basic for an id and a secret as they are."""
    return {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def refusal(answer: TestResponse) -> tuple[int, str]:
    """Status and error of a refusal in the form of RFC 6749 §5.2."""
    assert answer.content_type == "application/json", answer.text
    body = json_of(answer)
    assert body.keys() == {"error", "error_description"}
    assert all(" " <= character <= "~" and character not in '"\\' for character in body["error_description"])
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.status_code, body["error"]
