"""The verifier's options, read from the environment."""

from __future__ import annotations

import ssl
from dataclasses import fields

import certifi
import pytest

from authsvc.verifier import Options, WhenStale

REQUIRED = {
    "AUTHSVC_VERIFIER_URL": "http://authsvc:8080",
    "AUTHSVC_VERIFIER_CLIENT_ID": "id",
    "AUTHSVC_VERIFIER_CLIENT_SECRET": "secret-word",
    "AUTHSVC_VERIFIER_ISSUER": "https://auth.example.com",
    "AUTHSVC_VERIFIER_AUDIENCE": "internal",
}


def test_what_is_required_is_enough_and_foreign_variables_are_not_read():
    """All else has its default; what Kubernetes adds for a service named authsvc is no option."""
    options = Options.from_env(
        {**REQUIRED, "AUTHSVC_PORT": "tcp://10.0.0.1:8080", "AUTHSVC_VERIFIER_LEEWAY_S": ""}
    )

    assert options == Options(
        url="http://authsvc:8080",
        client_id="id",
        client_secret="secret-word",
        issuer="https://auth.example.com",
        audience="internal",
    )


def test_every_option_can_be_set(tmp_path):
    """Each field of the class has a variable; the secret and the certificates come from files."""
    secret = tmp_path / "secret"
    secret.write_text("from a file\n")
    options = Options.from_env(
        {
            **REQUIRED,
            "AUTHSVC_VERIFIER_CLIENT_SECRET": "",
            "AUTHSVC_VERIFIER_CLIENT_SECRET_FILE": str(secret),
            "AUTHSVC_VERIFIER_LIFETIME_S": "3600",
            "AUTHSVC_VERIFIER_MACHINE_LIFETIME_S": "600",
            "AUTHSVC_VERIFIER_LEEWAY_S": "0",
            "AUTHSVC_VERIFIER_MAX_STALENESS_S": "1.5",
            "AUTHSVC_VERIFIER_WHEN_STALE": "introspect",
            "AUTHSVC_VERIFIER_DEADLINE_S": "3",
            "AUTHSVC_VERIFIER_START_WITHIN_S": "4",
            "AUTHSVC_VERIFIER_REFETCH_KEYS_S": "5",
            "AUTHSVC_VERIFIER_INTROSPECTIONS": "6",
            "AUTHSVC_VERIFIER_CA_FILE": certifi.where(),
        }
    )

    assert (options.client_secret, options.when_stale) == ("from a file", WhenStale.INTROSPECT)
    assert isinstance(options.tls, ssl.SSLContext)
    defaults = Options.from_env(REQUIRED)
    same = [one.name for one in fields(Options) if getattr(options, one.name) == getattr(defaults, one.name)]
    assert same == ["url", "client_id", "issuer", "audience"]


@pytest.mark.parametrize(
    ("variables", "problems"),
    [
        ({"AUTHSVC_VERIFIER_URL": ""}, "AUTHSVC_VERIFIER_URL is missing"),
        ({"AUTHSVC_VERIFIER_URI": "secret-word"}, "AUTHSVC_VERIFIER_URI is unknown"),
        ({"AUTHSVC_VERIFIER_TLS": "secret-word"}, "AUTHSVC_VERIFIER_TLS is unknown"),
        (
            {"AUTHSVC_VERIFIER_MAX_STALENESS_S": "nan"},
            "AUTHSVC_VERIFIER_MAX_STALENESS_S is not a positive number",
        ),
        ({"AUTHSVC_VERIFIER_DEADLINE_S": "-1"}, "AUTHSVC_VERIFIER_DEADLINE_S is not a positive number"),
        ({"AUTHSVC_VERIFIER_LIFETIME_S": "1h"}, "AUTHSVC_VERIFIER_LIFETIME_S is not a whole number"),
        (
            {"AUTHSVC_VERIFIER_WHEN_STALE": "accept"},
            "AUTHSVC_VERIFIER_WHEN_STALE is not refuse or introspect",
        ),
        (
            {"AUTHSVC_VERIFIER_CA_FILE": "/nowhere", "AUTHSVC_VERIFIER_LEEWAY_S": "-5"},
            (
                "AUTHSVC_VERIFIER_CA_FILE is not a PEM file that can be read; "
                "AUTHSVC_VERIFIER_LEEWAY_S is not a whole number"
            ),
        ),
        (
            {"AUTHSVC_VERIFIER_CLIENT_SECRET_FILE": __file__},
            "AUTHSVC_VERIFIER_CLIENT_SECRET and AUTHSVC_VERIFIER_CLIENT_SECRET_FILE are both set",
        ),
        (
            {"AUTHSVC_VERIFIER_CLIENT_SECRET": "", "AUTHSVC_VERIFIER_CLIENT_SECRET_FILE": "/dev/null"},
            (
                "AUTHSVC_VERIFIER_CLIENT_SECRET is missing; "
                "AUTHSVC_VERIFIER_CLIENT_SECRET_FILE is not a file that holds a secret"
            ),
        ),
    ],
)
def test_every_problem_is_named_at_once_and_no_value(variables, problems):
    """Missing, unknown, of the wrong form, twice: by the names of the variables."""
    with pytest.raises(ValueError, match="AUTHSVC_VERIFIER_") as refusal:
        Options.from_env({**REQUIRED, **variables})

    assert str(refusal.value) == problems
