"""
A service that verifies access tokens by itself (docs/verifier.md).

From a checkout of authsvc:

    pip install --no-deps .
    pip install 'pyjwt[crypto]>=2.15.1,<3' flask gunicorn

Register it with `authsvc clients create orders`, set the variables that docs/verifier.md lists, and run it:

    gunicorn --bind 0.0.0.0:8080 with_the_verifier:app
"""

from __future__ import annotations

from typing import Any

from flask import Flask

from authsvc.verifier import Options, Verifier
from authsvc.verifier.flask import claims, requires

app = Flask(__name__)
#: Reads AUTHSVC_VERIFIER_*. Connects at the first check, once in each process.
verifier = Verifier(Options.from_env())


@app.get("/about")
def about() -> dict[str, bool]:
    """Answer everybody."""
    return {"known": False}


@app.get("/orders/<path:order>")
@requires(verifier, "user")
def orders(order: str) -> dict[str, Any]:
    """Answer users."""
    return {"order": order, "of": claims().user_id}


@app.get("/orders/admin/<path:order>")
@requires(verifier, "admin")
def all_orders(order: str) -> dict[str, Any]:
    """Answer admins."""
    return {"order": order, "asked_by": claims().user_id}
