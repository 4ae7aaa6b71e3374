"""Identifiers: taken in either case (RFC 9562 §4), answered in lower case."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from authsvc.settings import Settings
from tests.api.driver import json_of
from tests.transfers import Desk, user

CASES = [
    pytest.param(str.upper, id="upper"),
    pytest.param(lambda text: text[:20].upper() + text[20:], id="mixed"),
]

pytestmark = pytest.mark.parametrize("cased", CASES)


def test_a_session_is_ended_by_its_id_in_either_case(api, cased):
    """A client that prints identifiers in its own way has ended what it named."""
    person = api.someone()
    other = person.log_in()

    answer = person.call("DELETE", f"/v1/me/sessions/{cased(other.session_id)}")

    assert answer.status_code == 204
    assert not other.is_accepted()
    assert person.is_accepted()


def test_a_user_is_read_changed_and_deleted_by_an_id_in_either_case(api, admin, cased):
    """The same user, shown with the id as it was given out."""
    person = api.someone()
    path = f"/v1/users/{cased(person.id)}"

    assert json_of(admin.call("GET", path))["id"] == person.id
    assert admin.call("PATCH", path, json={"status": "disabled"}).json["id"] == person.id
    assert admin.call("DELETE", f"{path}/sessions").status_code == 204
    assert admin.call("DELETE", path).status_code == 204
    assert admin.call("GET", f"/v1/users/{person.id}").status_code == 404


def test_batches_take_either_case_and_answer_in_lower_case(api, admin, cased):
    """Two spellings of one id are one id; what nobody has is named in lower case, too."""
    person, nobody = api.someone(), str(uuid4())
    ids = [cased(person.id), person.id, cased(nobody)]

    found = json_of(admin.call("GET", f"/v1/batch/users/lookup?ids={','.join(ids)}"))
    noted = json_of(admin.call("PATCH", "/v1/batch/users/last-login", json={"ids": ids}))

    assert ([one["id"] for one in found["items"]], found["missing"]) == ([person.id], [nobody])
    assert (noted["updated"], noted["missing"]) == ([person.id], [nobody])


def test_filters_and_cursors_take_either_case(api, admin, cased):
    """The same events and the same page."""
    person = api.someone()
    admin.call("DELETE", f"/v1/users/{person.id}/sessions")
    everything = json_of(admin.call("GET", f"/v1/audit?user_id={person.id}"))["items"]

    about = json_of(admin.call("GET", f"/v1/audit?user_id={cased(person.id)}&actor_id={cased(admin.id)}"))
    after = json_of(admin.call("GET", f"/v1/audit?user_id={person.id}&cursor={cased(everything[0]['id'])}"))
    mine = json_of(person.log_in().call("GET", f"/v1/me/events?cursor={cased(everything[0]['id'])}"))
    page = json_of(admin.call("GET", f"/v1/users?limit=1&cursor={cased(person.id)}"))

    assert about["items"] == everything[:1]
    assert after["items"] == everything[1:]
    assert [item["id"] for item in mine["items"]] == [item["id"] for item in everything[1:]]
    assert page == json_of(admin.call("GET", f"/v1/users?limit=1&cursor={person.id}"))


def test_the_cache_is_cleared_of_a_user_in_either_case(api, admin, cased):
    """The user's copy is dropped."""
    person = api.someone()
    admin.call("GET", f"/v1/users/{person.id}")

    answer = admin.call("POST", "/v1/cache/clear", json={"user_id": cased(person.id)})

    assert json_of(answer)["cleared"] >= 1


def test_a_file_brings_ids_in_either_case(pg_api, cased):
    """An imported user is who the file says, in lower case; a second run finds the user there."""
    brought = str(uuid4())
    line = user(f"brought-{brought[:8]}", id=cased(brought))

    results = [Desk(pg_api.services, Settings.from_env(pg_api.env)).take(line)[0] for _ in range(2)]

    assert [result["result"] for result in results] == ["imported", "exists"]
    shown = pg_api.an_admin().call("GET", f"/v1/users/{brought}")
    assert json.loads(shown.text)["email"] == line["email"]


def test_tokens_stay_strict(api, cased):
    """What is signed is compared as it was signed: a token in another case is no token."""
    person = api.someone()

    assert api.verify(cased(person.access)) == 401
