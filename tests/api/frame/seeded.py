"""
Answers that hold no time and no chance, printed as JSON: ``python -m tests.api.frame.seeded``.

For a comparison between processes: each has a hash seed of its own, and with it another order of sets.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from authsvc.app import Application, create_app
from authsvc.settings import Settings
from authsvc.wiring import build
from tests.timings import UNHURRIED

WRONG: dict[str, list[Any]] = {
    name: [] for name in ("email", "password", "name", "phone", "device_id", "zeta", "beta", "alpha")
}
QUERY = "?" + "&".join(f"{name}=x" for name in ("role", "status", "limit", "cursor", "zeta", "beta"))


def main() -> None:
    """Build the application of this environment, ask, print."""
    application = create_app(build(Settings.from_env(os.environ), timings=UNHURRIED))
    try:
        json.dump(answers(application), sys.stdout)
    finally:
        application.services.close()


def answers(application: Application) -> list[Any]:
    """Status, headers but the request's id, and body."""
    client = application.flask.test_client(use_cookies=False)
    paths = sorted({rule.rule for rule in application.flask.url_map.iter_rules()})
    asked = [
        *(client.open(path, method="BREW") for path in paths),
        client.get("/openapi.json"),
        client.get("/.well-known/oauth-authorization-server"),
        client.get("/.well-known/jwks.json"),
        client.post("/v1/auth/register", json=WRONG),
        client.post("/v1/auth/refresh", json={"a": 1, "b": 2, "c": 3, "d": 4}),
        client.get(f"/v1/users{QUERY}"),
        client.get("/v1/me"),
    ]
    return [
        [one.status_code, [(k, v) for k, v in one.headers if k != "X-Request-Id"], without_id(one.text)]
        for one in asked
    ]


def without_id(text: str) -> str:
    """*text* without the id of a request."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    if isinstance(body, dict):
        body.pop("request_id", None)
    return json.dumps(body)


if __name__ == "__main__":
    main()
