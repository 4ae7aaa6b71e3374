"""Many users in one request: /v1/batch/users/*."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.api.batching import (
    CREATE,
    LAST_LOGIN,
    LOOKUP,
    busy_lane,
    create,
    everybody,
    ids_of,
    item,
    look_up,
    outcomes,
)
from tests.api.driver import Api, Person, code_of, json_of, new_email
from tests.api.watching import Shelf, sql_statements

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CREATED, MAX_IDS = 20, 100
#: The same in every process of a run: tests are known by their parameters.
SOME_ID = "7c2642a4-c2d8-4427-baa2-352c5917a75b"
#: What is no user at all.
NO_OBJECTS: list[object] = [None, 7, "x", [], [{"email": "a@example.com"}], {}, True]


@pytest.fixture
def admin(api: Api) -> Person:
    """Log an admin in."""
    api.prove_redis()
    return api.an_admin()


@pytest.fixture
def pg_admin(pg_api: Api) -> Person:
    """The same over PostgreSQL alone."""
    pg_api.prove_redis()
    return pg_api.an_admin()


@pytest.fixture
def shelf(api: Api) -> Iterator[Shelf]:
    """Look at the keys of the application."""
    with closing(Shelf(api)) as made:
        yield made


class TestCreate:
    """POST /v1/batch/users/create."""

    def test_every_item_has_a_result_in_order(self, api, admin):
        """
        A failure affects only its own item; the counts match, and SQL has exactly the created users (I36).
        """
        before = everybody(admin)
        taken = api.someone().email
        good = [item(name="Ada", phone="1", device_id="d"), item(new_email().upper())]
        bad: list[tuple[object, str]] = [
            (item(taken.upper()), "email_taken"),
            (item(roles=["admin"]), "validation_failed"),
            (item(shoe_size=44), "validation_failed"),
            (item("no address"), "validation_failed"),
            (item() | {"password": "short"}, "validation_failed"),
            (item() | {"password": "password1234567\ud800"}, "validation_failed"),
            (item(name="\x00"), "validation_failed"),
            ({"email": new_email()}, "validation_failed"),
        ]
        bad += [(nothing, "validation_failed") for nothing in NO_OBJECTS]

        answer = create(admin, good[0], *(one for one, _ in bad), good[1])

        assert outcomes(answer) == ["created", *(code for _, code in bad), "created"]
        assert (answer["created"], answer["failed"]) == (2, len(bad))
        assert set(answer) == {"results", "created", "failed"}
        assert [result["index"] for result in answer["results"]] == list(range(len(bad) + 2))
        assert [result["status"] for result in answer["results"][1:-1]] == ["failed"] * len(bad)
        assert everybody(admin) - before == {taken, good[0]["email"], good[1]["email"].lower()}

    def test_a_created_user_is_a_user_like_any_other(self, api, admin):
        """They are shown as everywhere, without a password, and can log in with it."""
        wanted = item(name="Ada", phone="+1", device_id="laptop")

        (result,) = create(admin, wanted)["results"]

        assert set(result) == {"index", "status", "user"}
        assert result["user"] == json_of(admin.call("GET", f"/v1/users/{result['user']['id']}"))
        assert [result["user"][name] for name in ("name", "phone", "device_id")] == ["Ada", "+1", "laptop"]
        assert (result["user"]["roles"], result["user"]["status"]) == (["user"], "active")
        assert api.log_in(wanted["email"]).status_code == 200

    def test_a_failed_item_says_what_is_wrong_with_which_field(self, admin):
        """By the codes of the service; nothing of the item comes back."""
        secret = "<i>a secret in the wrong place</i>"
        answer = create(admin, item(roles=["admin"]), item("nowhere"), 7, {secret: secret}, item(admin.email))

        errors = [result["error"] for result in answer["results"]]

        assert [set(error) for error in errors] == [{"code", "detail", "errors"}] * 4 + [{"code", "detail"}]
        assert [set(error["errors"]) for error in errors[:4]] == [
            {"roles"},
            {"email"},
            {"body"},
            {"body", "email", "password"},
        ]
        assert secret not in str(answer)

    def test_of_twins_in_one_batch_the_first_is_created(self, pg_admin):
        """Whatever the spelling; one that fails before by itself is no first."""
        twin = new_email()
        weak = item(twin) | {"password": "short"}

        answers = [
            create(pg_admin, item(mail), item(mail.upper()), item(f" {mail}"), item(mail))
            for mail in (new_email() for _ in range(5))
        ]
        late = create(pg_admin, weak, item(), item(twin.title()), item(twin))

        assert [outcomes(answer) for answer in answers] == [["created", *["email_taken"] * 3]] * 5
        assert outcomes(late) == ["validation_failed", "created", "created", "email_taken"]

    def test_twenty_are_created_at_once(self, admin):
        """As many as there may be, each with an id of their own."""
        answer = create(admin, *(item() for _ in range(MAX_CREATED)))

        assert outcomes(answer) == ["created"] * MAX_CREATED
        assert len(set(ids_of(answer))) == MAX_CREATED

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"users": []},
            {"users": [item() for _ in range(MAX_CREATED + 1)]},
            {"users": None},
            {"users": "x"},
            {"users": {"0": item()}},
            {"users": [item()], "dry_run": True},
            [item()],
            None,
        ],
    )
    def test_what_is_no_batch_is_refused_as_a_whole(self, pg_admin, body):
        """422, and nobody is created."""
        before = everybody(pg_admin)

        answer = pg_admin.call("POST", CREATE, json=body)

        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
        assert everybody(pg_admin) == before

    def test_items_that_find_no_place_to_hash_say_so(self, pg_api, pg_admin):
        """A partial failure is a reported state: what was busy was not created, may be sent again (I36)."""
        batch = [item(), item() | {"password": "short"}, item(pg_admin.email), item()]

        with busy_lane(pg_api):
            refused = create(pg_admin, *batch)
        again = create(pg_admin, *batch)

        # Before any password is looked at, which costs more than the refusal.
        assert outcomes(refused) == ["busy"] * 4
        assert (refused["created"], refused["failed"]) == (0, 4)
        assert outcomes(again) == ["created", "validation_failed", "email_taken", "created"]

    def test_an_admin_is_not_held_to_the_limit_of_registrations(self, make_api):
        """That limit is for addresses of strangers; the batch neither asks it nor counts for it."""
        api = make_api(RATE_LIMIT_REGISTER_IP="2/hour")
        admin = api.an_admin()

        answer = create(admin, *(item() for _ in range(5)))

        assert outcomes(answer) == ["created"] * 5
        assert [api.register(new_email()).status_code for _ in range(2)] == [201, 429]


class TestLookup:
    """GET /v1/batch/users/lookup."""

    def test_it_finds_who_is_there_and_names_who_is_not(self, admin):
        """In the order asked, as they are shown one by one."""
        ids = ids_of(create(admin, item(name="Ada"), item(), item()))
        nobody = [str(uuid4()), str(uuid4())]

        found = look_up(admin, ids[2], nobody[1], ids[0], nobody[0], ids[1])

        assert set(found) == {"items", "missing"}
        assert [user["id"] for user in found["items"]] == [ids[2], ids[0], ids[1]]
        assert found["missing"] == [nobody[1], nobody[0]]
        assert found["items"][1] == json_of(admin.call("GET", f"/v1/users/{ids[0]}"))

    def test_duplicates_collapse(self, admin):
        """Found or missing, each is named once."""
        nobody = str(uuid4())

        found = look_up(admin, admin.id, nobody, admin.id, nobody)

        assert [user["id"] for user in found["items"]] == [admin.id]
        assert found["missing"] == [nobody]

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "?ids=",
            "?ids=,",
            "?ids=x",
            f"?ids={SOME_ID},",
            f"?ids={SOME_ID},%20{SOME_ID}",
            f"?ids={{{SOME_ID}}}",
            f"?ids={SOME_ID.replace('-', '')}",
            f"?ids={SOME_ID}%00",
            f"?ids={SOME_ID}&limit=1",
            "?ids=" + ",".join(f"{SOME_ID[:-3]}{number:03}" for number in range(MAX_IDS + 1)),
            "?ids=" + ",".join([SOME_ID] * (MAX_IDS + 1)),
        ],
    )
    def test_what_names_no_ids_is_refused(self, pg_admin, query):
        """422 for none, for more than a hundred (also of the same), and for one that is malformed."""
        answer = pg_admin.call("GET", LOOKUP + query)

        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")

    def test_a_hundred_cost_one_mget_and_at_most_one_query(self, admin, shelf):
        """Cold: one MGET and one query for all; then one MGET alone; half cold: one query for that half."""
        ids = [one for _ in range(5) for one in ids_of(create(admin, *(item() for _ in range(20))))]
        assert len(ids) == MAX_IDS
        for one in ids:  # who is registered is cached
            shelf.drop(f"user:{one}")

        cold = cost(admin, shelf, ids)
        warm = cost(admin, shelf, ids)
        admin.call("PATCH", LAST_LOGIN, json={"ids": ids[:50]})
        half = cost(admin, shelf, ids)

        assert cold == (1, 1, 100)
        assert warm == (1, 0, 0)
        assert half == (1, 1, 50)

    def test_ids_that_nobody_has_cost_no_more(self, admin, shelf):
        """One MGET and one query, together with those who are there."""
        ids = [*(str(uuid4()) for _ in range(MAX_IDS - 1)), admin.id]

        assert cost(admin, shelf, ids)[:2] == (1, 1)

    def test_without_proof_all_come_from_sql(self, admin, shelf):
        """Cached users are neither used nor overwritten."""
        ids = ids_of(create(admin, item(name="Ada"), item(name="Ada")))
        assert len(look_up(admin, *ids)["items"]) == 2
        forged = {f"user:{one}": (shelf.get(f"user:{one}") or "").replace("Ada", "Eve") for one in ids}
        for name, text in forged.items():
            shelf.put(name, text)
        assert {user["name"] for user in look_up(admin, *ids)["items"]} == {"Eve"}

        shelf.drop("auth:revocations:seq")
        found = look_up(admin, *ids)

        assert {user["name"] for user in found["items"]} == {"Ada"}
        assert {name: shelf.get(name) for name in forged} == forged


def cost(admin: Person, shelf: Shelf, ids: list[str]) -> tuple[int, int, int]:
    """MGETs of users in one shard, queries, and how many users these asked for, of one look-up of *ids*."""
    with shelf.commands() as commands, sql_statements() as statements:
        found = look_up(admin, *ids)
    assert len(found["items"]) + len(found["missing"]) == len(ids)
    reads = [command for command in commands if command.startswith(("GET ", "MGET")) and ":user:" in command]
    assert all(sum(f":user:{one}" in command for command in reads) == 1 for one in ids)
    shards = Counter(command.split(":user:")[0].split()[-1] for command in reads)
    stored = [command for command in commands if command.startswith("EVAL") and ":lease:" in command]
    loaded = len(stored) if statements else 0
    return max(shards.values()), len(statements), loaded


class TestLastLogin:
    """PATCH /v1/batch/users/last-login."""

    def test_it_shows_in_the_next_read(self, api, admin):
        """Existing users are updated, in the order asked, cached copies too; unknown ids are listed."""
        ids = ids_of(create(admin, item(), item(), item()))
        nobody = str(uuid4())
        assert {user["last_login"] for user in look_up(admin, *ids)["items"]} == {None}
        admin.call("GET", "/v1/users?limit=200")

        answer = admin.call("PATCH", LAST_LOGIN, json={"ids": [ids[2], nobody, ids[0], ids[2], nobody]})

        assert answer.status_code == 200
        assert answer.json == {"updated": [ids[2], ids[0]], "missing": [nobody]}
        shown = {user["id"]: user["last_login"] for user in look_up(admin, *ids)["items"]}
        assert shown[ids[0]] == shown[ids[2]] is not None
        assert shown[ids[1]] is None
        assert json_of(admin.call("GET", f"/v1/users/{ids[0]}"))["last_login"] == shown[ids[0]]
        listed = {user["id"]: user for user in json_of(admin.call("GET", "/v1/users?limit=200"))["items"]}
        assert listed[ids[0]]["last_login"] == shown[ids[0]]

    def test_it_is_one_moment_and_no_login(self, admin, api):
        """All get the same time; no session begins or ends, and tokens stay good."""
        person = api.someone()
        sessions = json_of(person.call("GET", "/v1/me/sessions"))["items"]
        api.clock.tick(60)

        admin.call("PATCH", LAST_LOGIN, json={"ids": [person.id, admin.id]})

        shown = {user["last_login"] for user in look_up(admin, person.id, admin.id)["items"]}
        assert len(shown) == 1
        assert person.is_accepted()
        assert json_of(person.call("GET", "/v1/me/sessions"))["items"] == sessions

    def test_a_hundred_are_updated_at_once(self, pg_admin):
        """As many as there may be."""
        ids = [*(str(uuid4()) for _ in range(MAX_IDS - 1)), pg_admin.id]

        answer = pg_admin.call("PATCH", LAST_LOGIN, json={"ids": ids})

        assert (answer.status_code, json_of(answer)["updated"]) == (200, [pg_admin.id])
        assert json_of(answer)["missing"] == ids[:-1]

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"ids": []},
            {"ids": [str(uuid4()) for _ in range(MAX_IDS + 1)]},
            {"ids": None},
            {"ids": str(uuid4())},
            {"ids": [str(uuid4()), "x"]},
            {"ids": ["{" + str(uuid4()) + "}"]},
            {"ids": [7]},
            {"ids": [None]},
            {"ids": [str(uuid4())], "last_login": "2026-01-01T00:00:00Z"},
            [str(uuid4())],
        ],
    )
    def test_what_names_no_ids_is_refused(self, pg_admin, body):
        """422 for none, too many, or one that is malformed."""
        answer = pg_admin.call("PATCH", LAST_LOGIN, json=body)

        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


@pytest.mark.parametrize(("method", "path"), [("POST", CREATE), ("GET", LOOKUP), ("PATCH", LAST_LOGIN)])
def test_a_user_without_the_role_is_refused_before_their_request_is_read(pg_api, method, path):
    """403, whatever they send; 401 for nobody."""
    body = {} if method == "GET" else {"json": {"nonsense": True}}

    answer = pg_api.someone().call(method, path, **body)

    assert (answer.status_code, code_of(answer)) == (403, "forbidden")
    assert pg_api.call(method, path, **body).status_code == 401
