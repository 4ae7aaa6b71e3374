"""Answers to requests that revoke: done everywhere, or in SQL with Redis still to follow."""

from __future__ import annotations

from typing import TypeVar

from flask import Response

from authsvc.domain.revocations import Outcome

T = TypeVar("T")


def revoked(outcome: Outcome[T]) -> Response:
    """204, or 202 while Redis cannot be written."""
    response = Response(status=204 if outcome.is_complete else 202)
    del response.headers["Content-Type"]
    return response


def changed(outcome: Outcome[T]) -> tuple[T, int]:
    """The changed value with 200, or with 202 while Redis cannot be written."""
    return outcome.value, 200 if outcome.is_complete else 202
