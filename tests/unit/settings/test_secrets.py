"""Secrets: from files, never weak, never shown."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest

from authsvc.settings import (
    Secret,
    Settings,
    SettingsError,
)
from tests import ROOT
from tests.unit.settings.env import (
    PEPPER,
    SECRETS,
    TOKEN_SECRET,
    only_problem,
    problems,
    production,
    read,
)

HIDDEN = "hUnter2-Zq"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (f"{TOKEN_SECRET}\n", TOKEN_SECRET),
        (f"{TOKEN_SECRET}\r\n", TOKEN_SECRET),
        (TOKEN_SECRET, TOKEN_SECRET),
        (f"{TOKEN_SECRET}\n\n", f"{TOKEN_SECRET}\n"),
        (f" {TOKEN_SECRET} \r", f" {TOKEN_SECRET} \r"),
    ],
    ids=["LF", "CRLF", "none", "two", "spaces and CR"],
)
def test_a_secret_s_file_loses_one_trailing_newline(tmp_path, content, text):
    """What an editor or a here-document adds is no part of the secret; the rest is."""
    file = tmp_path / "secret"
    file.write_bytes(content.encode())

    settings = read(tmp_path, TOKEN_SECRET=None, TOKEN_SECRET_FILE=str(file))

    assert settings.tokens.secret == Secret(text)


def test_every_secret_can_come_from_a_file(tmp_path):
    """No secret needs to be in the environment."""
    texts = {
        "TOKEN_SECRET": TOKEN_SECRET,
        "PASSWORD_PEPPER": PEPPER,
        "REDIS_PASSWORD": "r-Pa55word",
        "DATABASE_URL": "postgresql://u@h/d",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}\n")
    files = {f"{name}_FILE": str(tmp_path / name) for name in texts}

    settings = read(tmp_path, **dict.fromkeys(texts), **files)

    assert settings.redis.password == Secret("r-Pa55word")
    assert settings.database.url == Secret("postgresql://u@h/d")
    assert settings.tokens.secret == Secret(TOKEN_SECRET)
    assert settings.passwords.pepper == Secret(PEPPER)


def test_a_redis_url_can_come_from_a_file(tmp_path):
    """It carries a password, so it is a secret too."""
    (tmp_path / "url").write_text("rediss://u:p@h/1\n")

    redis = read(tmp_path, REDIS_HOST=None, REDIS_URL_FILE=str(tmp_path / "url")).redis

    assert redis.url == Secret("rediss://u:p@h/1")


def test_no_print_of_the_settings_shows_a_secret(tmp_path):
    """repr, str, format, asdict and copies stay masked."""
    settings = read(tmp_path, REDIS_HOST=None, REDIS_URL="redis://:r-Pa55word@h")

    prints = [
        repr(settings),
        str(settings),
        f"{settings}",
        str(dataclasses.asdict(settings)),
        str(vars_of(settings)),
    ]

    for secret in (TOKEN_SECRET, PEPPER, "db-Pa55word", "r-Pa55word"):
        assert not any(secret in text for text in prints)
    assert "Secret('***')" in prints[0]
    assert repr(copy.deepcopy(settings)) == prints[0]


def vars_of(settings: Settings) -> list[object]:
    """Return every field as a logger of locals would find it."""
    return [f"{getattr(settings, field.name)!s}" for field in dataclasses.fields(settings)]


def test_a_secret_compares_by_its_text_and_reveals_it_on_request_alone():
    """Secrets work as values and as keys without showing themselves."""
    secret = Secret("s3cret")

    assert secret == Secret("s3cret")
    assert secret != Secret("other")
    assert secret != "s3cret"
    assert {secret: 1}[Secret("s3cret")] == 1
    assert (f"{secret}", f"{secret!r}", secret.reveal()) == ("***", "Secret('***')", "s3cret")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_with_its_file_is_a_contradiction(tmp_path, name):
    """Which of the two wins is nobody's guess."""
    file = tmp_path / "secret"
    file.write_text("from the file")
    env = production(tmp_path, **{name: "from the environment", f"{name}_FILE": str(file)})

    found = [problem for problem in problems(env) if problem.name == name]

    assert f"contradicts {name}_FILE" in found[0].message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent", "No such file"),
        ("", "empty"),
        (".", "directory"),
        ("a\0b", "no path"),
        ("x" * 5000, "too long"),
    ],
)
def test_a_secret_s_file_that_cannot_be_read_is_one_problem_of_the_list(tmp_path, monkeypatch, path, reason):
    """The others are named as well; the path is not, since the secret itself lands there at times."""
    monkeypatch.chdir(tmp_path)
    env = production(tmp_path, TOKEN_SECRET=None, TOKEN_SECRET_FILE=path, PORT="x")

    port, secret = problems(env)

    assert (port.name, secret.name) == ("PORT", "TOKEN_SECRET")
    assert "TOKEN_SECRET_FILE" in secret.message
    assert reason in secret.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"\xff" * 40, "UTF-8"), (b"ab" * 40_000, "longer")],
)
def test_a_secret_s_file_must_hold_a_text(tmp_path, content, reason):
    """Raw bytes and a wrong file are told apart from a weak secret."""
    (tmp_path / "secret").write_bytes(content)

    problem = only_problem(
        production(tmp_path, TOKEN_SECRET=None, TOKEN_SECRET_FILE=str(tmp_path / "secret"))
    )

    assert reason in problem.message


@pytest.mark.parametrize(
    "weak",
    [
        "x" * 31,
        "x" * 64,
        "ü" * 15,
        "change-me-0123456789-abcdefghijklmnop",
        "CHANGEME_0123456789_abcdefghijklmnop",
        "please-replace-me-with-32-random-bytes",
    ],
)
@pytest.mark.parametrize("name", ["TOKEN_SECRET", "PASSWORD_PEPPER"])
def test_weak_secrets_are_refused(tmp_path, name, weak):
    """Short, monotonous and printed ones can be guessed."""
    problem = only_problem(production(tmp_path, **{name: weak}))

    assert problem.name == name
    assert problem.message.startswith("is weak")
    assert weak not in problem.message


def test_thirty_two_bytes_are_enough(tmp_path):
    """Bytes count, not characters."""
    settings = Settings.from_env(production(tmp_path, TOKEN_SECRET="aé" * 11))

    assert settings.warnings == ()


def test_equal_secrets_are_refused(tmp_path):
    """One leak must not be two."""
    found = problems(production(tmp_path, PASSWORD_PEPPER=TOKEN_SECRET))

    assert {problem.name for problem in found} == {"TOKEN_SECRET", "PASSWORD_PEPPER"}
    assert only_problem(production(tmp_path, REDIS_PASSWORD=PEPPER)).name == "PASSWORD_PEPPER"


@pytest.mark.parametrize(
    "changes",
    [
        {"TOKEN_SECRET": HIDDEN},
        {"PASSWORD_PEPPER": HIDDEN},
        {"PASSWORD_PEPPER": f"change-me {HIDDEN}"},
        {"TOKEN_SECRET": f"{HIDDEN}\udcff"},
        {"TOKEN_SECRET": HIDDEN, "TOKEN_SECRET_FILE": HIDDEN},
        {"TOKEN_SECRET": None, "TOKEN_SECRET_FILE": f"{HIDDEN}{HIDDEN}{HIDDEN}{HIDDEN}"},
        {"DATABASE_URL": f"mysql://u:{HIDDEN}@h/d"},
        {"DATABASE_URL": f"postgresql://u:1/{HIDDEN}@h/d"},
        {"DATABASE_URL": f"postgresql://u:{HIDDEN}/x@h/d"},
        {"DATABASE_URL": f"postgresql://u:%{HIDDEN}@h/d"},
        {"DATABASE_URL": f"postgresql://u:{HIDDEN}/?{HIDDEN}=1@h/d"},
        {"DATABASE_URL": f"postgresql://u:{HIDDEN}%00@h/d"},
        {"DATABASE_URL": f"postgresql://u:p@h/d?options=-c{HIDDEN}"},
        {"DATABASE_URL": f"postgresql://u:change-me-{HIDDEN}@h/d"},
        {"DATABASE_URL": f"postgresql://u:{HIDDEN}\u2100@h/d"},
        {"DATABASE_URL": HIDDEN},
        {"REDIS_HOST": None, "REDIS_URL": f"http://:{HIDDEN}@h"},
        {"REDIS_HOST": None, "REDIS_URL": f"redis://:{HIDDEN}@h/x"},
        {"REDIS_HOST": None, "REDIS_URL": f"redis://:{HIDDEN}/@h"},
        {"REDIS_URL": f"redis://:{HIDDEN}@h"},
        {"REDIS_HOST": f"redis://:{HIDDEN}@h"},
        {"REDIS_HOST": f"{HIDDEN}@h"},
        {"REDIS_SENTINELS": f":{HIDDEN}@h:1"},
        {"REDIS_CLUSTER_NODES": f"h:1,:{HIDDEN}@h"},
        {"REDIS_PASSWORD": HIDDEN, "REDIS_HOST": None, "REDIS_URL": "redis://h"},
        {"REDIS_SENTINEL_PASSWORD": HIDDEN},
        {"JWT_ISSUER": f"https://u:{HIDDEN}@h"},
        {"AUTHSVC_TOKEN_SECRET": HIDDEN},
    ],
)
def test_no_message_shows_a_secret(tmp_path, changes):
    """Neither the message nor the exception's repr, whichever way the value is wrong."""
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env(production(tmp_path, **changes))

    shown = (str(refusal.value), repr(refusal.value), repr(refusal.value.problems))
    assert not any(part in text for text in shown for part in (HIDDEN, TOKEN_SECRET, PEPPER, "Pa55word"))
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None


SAMPLE = re.compile(r"://[^\s/:@`']+:([^\s@`'$]+)@|echo '([^']+)' > \S*password")


def printed_samples() -> set[str]:
    """Return the passwords that pages and shipped files print in URLs and in commands that store one."""
    files = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "k8s").rglob("*.yaml"),
        ROOT / "compose.yaml",
        ROOT / "README.md",
    ]
    found = [groups for file in files for groups in SAMPLE.findall(file.read_text())]
    return {in_url or stored for in_url, stored in found if in_url != "…"}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("DATABASE_URL", "postgresql://authsvc:{}@db.internal:5432/authsvc"),
        ("REDIS_URL", "redis://authsvc:{}@redis.internal/0"),
        ("REDIS_PASSWORD", "{}"),
    ],
)
def test_the_sample_passwords_of_the_pages_are_refused(tmp_path, name, form):
    """Whoever pastes an example gets no server that everybody can log in to."""
    samples = printed_samples()
    assert {"change-me", "password"} <= samples
    for sample in samples:
        env = production(
            tmp_path, **{"REDIS_HOST": None if name == "REDIS_URL" else "h", name: form.format(sample)}
        )

        problem = only_problem(env)

        assert problem.name == name
        assert "a sample of the documentation" in problem.message
