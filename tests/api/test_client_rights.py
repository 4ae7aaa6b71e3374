"""What a registered client may do: introspect, see refresh tokens as active, revoke, read the feed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.clients import USUAL_RIGHTS, Right
from tests.api.driver import code_of
from tests.api.gateway import INACTIVE, INTROSPECT, REVOKE, Gateway, refusal

if TYPE_CHECKING:
    from tests.api.driver import Api

LACKING = (400, "unauthorized_client")


def feed(client: Gateway) -> tuple[int, str | None]:
    """Status and code of reading the feed."""
    answer = client.api.call("GET", "/v1/revocations", headers=client.headers)
    return answer.status_code, None if answer.status_code == 200 else code_of(answer)


def oauth(client: Gateway, path: str, token: str) -> tuple[int, str | None]:
    """Status and error of an OAuth route."""
    answer = client.post(path, {"token": token})
    return (200, None) if answer.status_code == 200 else refusal(answer)


@pytest.mark.parametrize(
    "may",
    [
        (),
        (Right.INTROSPECT,),
        (Right.INTROSPECT_REFRESH,),
        (Right.REVOKE,),
        (Right.FEED,),
        USUAL_RIGHTS,
        tuple(Right),
    ],
    ids=" ".join,
)
def test_a_client_does_what_it_may_and_nothing_else(pg_api: Api, may: tuple[Right, ...]):
    """400 `unauthorized_client` on OAuth routes, 403 `forbidden` on the feed; nothing has happened then."""
    client, person = Gateway.of(pg_api, may=may), pg_api.someone()
    may_introspect = {Right.INTROSPECT, Right.INTROSPECT_REFRESH} & {*may}

    assert oauth(client, INTROSPECT, person.access) == ((200, None) if may_introspect else LACKING)
    assert feed(client) == ((200, None) if Right.FEED in may else (403, "forbidden"))
    assert oauth(client, REVOKE, person.access) == ((200, None) if Right.REVOKE in may else LACKING)
    assert person.is_accepted() is (Right.REVOKE not in may)


def test_refresh_tokens_are_active_for_those_alone_who_may_see_them(pg_api: Api):
    """RFC 7662 §2.2: a resource server would let them in as a bearer; access tokens are seen by all."""
    usual, named = Gateway.of(pg_api, may=USUAL_RIGHTS), Gateway.of(pg_api, may=[Right.INTROSPECT_REFRESH])
    person = pg_api.someone()
    hints: list[dict[str, str]] = [
        {},
        {"token_type_hint": "refresh_token"},
        {"token_type_hint": "access_token"},
    ]

    assert [usual.introspect(person.refresh_token, **hint) for hint in hints] == [INACTIVE] * 3
    assert [named.introspect(person.refresh_token, **hint)["active"] for hint in hints] == [True] * 3
    assert usual.introspect(person.access) == named.introspect(person.access)
    assert usual.introspect(person.access)["active"]


def test_a_refresh_token_can_be_revoked_by_who_may_not_see_it(pg_api: Api):
    """A client that has a token may revoke it."""
    client, person = Gateway.of(pg_api, may=USUAL_RIGHTS), pg_api.someone()

    assert client.revoke(person.refresh_token) == 200

    assert not person.is_accepted()


def test_without_a_secret_nobody_learns_what_a_client_may(pg_api: Api):
    """The secret comes first: 401 whatever the client lacks."""
    client = Gateway.of(pg_api, may=[])
    guess = Gateway(api=pg_api, id=client.id, secret="wrong")

    assert oauth(guess, INTROSPECT, "x") == oauth(guess, REVOKE, "x") == (401, "invalid_client")
    assert feed(guess) == (401, "invalid_client")


def test_a_client_without_a_right_is_refused_before_its_form_is_read(pg_api: Api):
    """Also what is no form."""
    client = Gateway.of(pg_api, may=[Right.FEED])

    assert refusal(client.post(INTROSPECT, b"\xff", content_type="text/plain")) == LACKING


@pytest.mark.parametrize(
    ("arguments", "may"),
    [
        ((), ["introspect", "revoke", "feed"]),
        (("--may", "introspect-refresh"), ["introspect-refresh"]),
        (("--may", "feed", "--may", "introspect", "--may", "feed"), ["introspect", "feed"]),
    ],
)
def test_the_command_line_gives_rights_by_name(pg_api: Api, command, monkeypatch, capsys, arguments, may):
    """And lists them; nobody gets `introspect-refresh` without asking for it."""
    for name, value in pg_api.env.items():
        monkeypatch.setenv(name, value)

    assert command(["clients", "create", "one", *arguments]) == 0
    client_id = json.loads(capsys.readouterr().out)["client_id"]
    assert command(["clients", "list"]) == 0

    (listed,) = [
        one for one in json.loads(capsys.readouterr().out)["clients"] if one["client_id"] == client_id
    ]
    assert listed["may"] == may


@pytest.mark.parametrize("right", ["tokens", "everything", "", "Feed"])
def test_there_are_no_other_rights(pg_api: Api, command, capsys, right):
    """An unknown one is a usage error that names those that there are."""
    with pytest.raises(SystemExit) as ended:
        command(["clients", "create", "one", "--may", right])

    assert ended.value.code == 2
    assert "introspect-refresh" in capsys.readouterr().err
