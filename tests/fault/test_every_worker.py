"""What one worker, an operator or a key folder decides holds in every worker, on the next request."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import jwt
import pytest

from authsvc.cli.keys import generate_key
from tests.fault.asking import ALL_ACCEPTED, ALL_REFUSED, PATIENCE_S, answered, everywhere
from tests.fault.observing import feeling, watching
from tests.fault.world import Member, sign_up
from tests.processes import wait_until
from tests.rig import PASSWORD, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.asking import Answer
    from tests.fault.observing import Pulse
    from tests.fault.world import World

pytestmark = [pytest.mark.fault, pytest.mark.slow]

OTHER_PASSWORD = "a staple that no horse has seen"


@contextmanager
def carrying_over(world: World) -> Iterator[Pulse]:
    """What the block revokes holds after it: at once, or carried over where the machine was late."""
    with feeling(world) as pulse:
        yield pulse
    if pulse.is_late:
        world.wait_replayed()


def is_done(answer: Answer, pulse: Pulse, *, status: int = 204) -> bool:
    """Done everywhere; 202 only where the machine kept Redis from it."""
    return answer.status == status or (pulse.is_late and answer.status == 202)


def command(world: World, *arguments: str, stdin: str = "") -> dict[str, object]:
    """Run the command line with the service's own settings; the object that it prints."""
    folder = world.service.log.parent
    done = run_command(*arguments, env=world.service.env, folder=folder, stdin=stdin)
    assert done.returncode == 0, done.stderr
    printed: dict[str, object] = json.loads(done.stdout)
    return printed


def newcomer(world: World) -> Member:
    """Somebody new, logged in."""
    email = f"{uuid4().hex}@example.com"
    sign_up(world.service, email)
    return world.let_in(email)


def make_admin(world: World) -> Member:
    """A new admin, logged in."""
    email = f"{uuid4().hex}@example.com"
    command(world, "users", "create", email, "--role", "admin", "--password-stdin", stdin=PASSWORD)
    return world.let_in(email)


def test_a_logout_in_one_worker_holds_in_the_other(world):
    """Each worker in turn is the only one to hear of it; 204 means all of them know."""
    for position in range(2):
        member = newcomer(world)
        assert everywhere(world.service, member.access) == [ALL_ACCEPTED]  # now remembered by both

        log_out = partial(answered, partial(world.log_out, member))
        with carrying_over(world) as pulse:
            answer = world.service.from_worker(position, log_out)

        assert is_done(answer, pulse)
        assert everywhere(world.service, member.access) == [ALL_REFUSED]


def test_new_roles_end_the_tokens_of_the_old_ones(world):
    """Set on the command line; in every worker the old token is refused, a refresh brings the new roles."""
    make_admin(world)  # the last one could not be demoted
    member = newcomer(world)
    assert everywhere(world.service, member.access) == [ALL_ACCEPTED]

    with carrying_over(world):
        printed = command(world, "users", "set-role", member.email, "admin")
    refused = everywhere(world.service, member.access)
    promoted = world.refreshed(member)

    assert (printed["email"], printed["roles"]) == (member.email, ["user", "admin"])
    assert refused == [ALL_REFUSED]
    assert everywhere(world.service, promoted.access) == [ALL_ACCEPTED]
    assert admin_statuses(world, promoted) == [200, 200]

    with carrying_over(world):
        command(world, "users", "set-role", member.email, "user")
    demoted = world.refreshed(promoted)

    assert everywhere(world.service, promoted.access) == [ALL_REFUSED]
    assert admin_statuses(world, demoted) == [403, 403]


def admin_statuses(world: World, member: Member) -> list[int]:
    """What each worker says to a gateway that asks for an admin."""
    path = "/v1/auth/verify?role=admin"
    return world.service.from_each_worker(lambda: world.ask("GET", path, token=member.access).status)


def test_a_disabled_user_is_out_everywhere(world):
    """Access tokens, refresh token and login alike; enabled again, the old tokens stay dead."""
    admin, member = make_admin(world), newcomer(world)
    path = f"/v1/users/{answered(partial(world.read, member)).body['id']}"
    assert everywhere(world.service, member.access) == [ALL_ACCEPTED]

    refresh, log_in = partial(world.refresh, member), partial(world.try_login, member.email)
    patch = partial(world.ask, "PATCH", path, token=admin.access)
    with carrying_over(world) as pulse:
        disabled = answered(partial(patch, json={"status": "disabled"}))
    refused = everywhere(world.service, member.access)
    others = [answered(refresh).status, answered(log_in).status]
    with carrying_over(world) as pulse_again:
        enabled = answered(partial(patch, json={"status": "active"}))

    assert is_done(disabled, pulse, status=200)
    assert disabled.body["status"] == "disabled"
    assert is_done(enabled, pulse_again, status=200)
    assert refused == everywhere(world.service, member.access) == [ALL_REFUSED]
    assert others == [401, 401]
    assert answered(refresh).status == 401
    assert answered(log_in).status == 200


def test_a_new_password_ends_every_other_session(world):
    """In every worker; the session that asked goes on with its tokens."""
    here = newcomer(world)
    there = world.let_in(here.email)
    assert everywhere(world.service, here.access, there.access) == [ALL_ACCEPTED] * 2

    passwords = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    with carrying_over(world) as pulse:
        changed = world.ask("POST", "/v1/me/password", token=here.access, json=passwords)
    after = everywhere(world.service, here.access, there.access)

    assert is_done(changed, pulse)
    assert after == [ALL_ACCEPTED, ALL_REFUSED]
    assert [answered(partial(world.refresh, one)).status for one in (here, there)] == [200, 401]
    logins = world.service.from_each_worker(
        lambda: [
            answered(partial(world.try_login, here.email, word)).status for word in (PASSWORD, OTHER_PASSWORD)
        ]
    )
    assert logins == [[401, 200]] * 2


def test_removing_a_key_ends_its_tokens_and_another_takes_over(world, tmp_path):
    """No restart: a new key is published by every worker, the tokens of the old one die with its file."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    generate_key(folder, "ES256")
    (old,) = folder.glob("*.pem")
    with world.replica(JWT_KEYS_DIR=str(folder)) as other:
        member = other.log_in("stays")
        old_kid = jwt.get_unverified_header(member.access)["kid"]

        made = command(other, "keys", "generate", "--dir", str(folder))
        with watching(other.service, good=[member.access]):
            wait_until(lambda: published(other) == {old_kid, made["kid"]}, timeout_s=PATIENCE_S)
        old.unlink()
        wait_until(
            lambda: set(other.service.verify_everywhere(member.access, times=1)) == {401},
            timeout_s=PATIENCE_S,
        )
        successor = other.log_in("stays")

        assert made["state"] == "published"
        assert everywhere(other.service, member.access, successor.access) == [ALL_REFUSED, ALL_ACCEPTED]
        assert jwt.get_unverified_header(successor.access)["kid"] == made["kid"]
        assert published(other) == {made["kid"]}


def published(world: World) -> set[str]:
    """The key ids that all workers publish; empty while they disagree."""
    sets = world.service.from_each_worker(lambda: world.ask("GET", "/.well-known/jwks.json").body["keys"])
    first, second = ({key["kid"] for key in keys} for keys in sets)
    return first if first == second else set()
