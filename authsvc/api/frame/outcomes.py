"""Answers to requests that revoke: 202 if SQL is done and Redis could not be updated yet."""

from __future__ import annotations

from typing import TypeVar

from flask import Response

from authsvc.domain.revocations import Outcome

T = TypeVar("T")


def revoked(outcome: Outcome[T]) -> Response:
    """204, or 202 if Redis could not be updated."""
    response = Response(status=204 if outcome.is_complete else 202)
    del response.headers["Content-Type"]
    return response


def changed(outcome: Outcome[T]) -> tuple[T, int]:
    """The changed value with 200, or with 202 if Redis could not be updated."""
    return outcome.value, 200 if outcome.is_complete else 202
