"""What the tests of /v1/batch/users/* ask for, and how they read the answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from authsvc.domain.errors import HashingBusy
from authsvc.domain.passwords.lane import BoundedPasswords
from tests.api.driver import Api, Person, json_of, new_email
from tests.processes import wait_until
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator

CREATE, LOOKUP, LAST_LOGIN = (f"/v1/batch/users/{name}" for name in ("create", "lookup", "last-login"))


def item(email: str | None = None, **fields: Any) -> dict[str, Any]:
    """Somebody to create."""
    return {"email": email or new_email(), "password": PASSWORD, **fields}


def create(admin: Person, *items: object) -> dict[str, Any]:
    """Create *items*; every batch that is one is answered by 200."""
    answer = admin.call("POST", CREATE, json={"users": list(items)})
    assert answer.status_code == 200, answer.text
    return json_of(answer)


def ids_of(answer: dict[str, Any]) -> list[str]:
    """The ids of those who were created."""
    return [result["user"]["id"] for result in answer["results"]]


def look_up(admin: Person, *ids: str) -> dict[str, Any]:
    """Look *ids* up."""
    answer = admin.call("GET", f"{LOOKUP}?ids={','.join(ids)}")
    assert answer.status_code == 200, answer.text
    return json_of(answer)


def outcomes(answer: dict[str, Any]) -> list[str]:
    """``created``, or why not, for each item."""
    return [
        result["error"]["code"] if "error" in result else result["status"] for result in answer["results"]
    ]


def everybody(admin: Person) -> set[str]:
    """The addresses of all users."""
    found: set[str] = set()
    cursor = ""
    while cursor is not None:
        page = json_of(admin.call("GET", f"/v1/users?limit=200{cursor and f'&cursor={cursor}'}"))
        found |= {user["email"] for user in page["items"]}
        cursor = page["next_cursor"]
    return found


@contextmanager
def busy_lane(api: Api) -> Iterator[None]:
    """Keep every thread and every place of the hashing lane occupied."""
    passwords = api.services.authentication.proof.passwords
    assert isinstance(passwords, BoundedPasswords)
    lane = passwords.lane
    done = threading.Event()
    refused = threading.Event()

    def occupy() -> None:
        while not done.is_set() and not refused.is_set():
            try:
                lane.run(lambda: done.wait(120))
            except HashingBusy:
                refused.set()

    with ThreadPoolExecutor(64) as pool:
        for _ in range(64):
            pool.submit(occupy)
        wait_until(refused.is_set)
        try:
            yield
        finally:
            done.set()
