"""Requests that are odd before they are wrong: invented methods, doubled slashes."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("method", ["PROPFIND", "X" * 40, "get"])
def test_invented_methods_are_one_in_the_metrics(api, method):
    """Each would be a series of its own: 405, and counted under one name."""
    answer = api.call(method, "/v1/me")
    figures = api.application.services.metrics.exposition()[0].decode()

    assert answer.status_code == 405
    assert f'method="{method}"' not in figures
    assert 'method="OTHER"' in figures


def test_a_doubled_slash_is_no_way_around_a_gateways_rules(api):
    """``//v1/me`` is nothing here, whatever a gateway makes of it."""
    assert api.call("GET", "//v1/health/live").status_code == 404
    assert api.call("GET", "/v1/health/live").status_code == 200


@pytest.mark.parametrize("method", ["PROPFIND", "OPTIONS", "TRACE"])
def test_a_check_takes_any_method(api, method):
    """Envoy asks with the method of the original request."""
    person = api.someone()
    headers = {"Authorization": f"Bearer {person.access}"}

    assert api.call(method, "/v1/auth/verify/orders/7", headers=headers).status_code == 200
