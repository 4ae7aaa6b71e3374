"""Log records: what they carry, and what they must not carry."""

from __future__ import annotations

import atexit
import json
import logging
import re
import threading
import warnings
from typing import NoReturn
from uuid import UUID

import pytest

from authsvc.observability.logs import (
    LogPipe,
    PipeHandler,
    bind_request,
    configure,
    email_digest,
)
from tests.unit.observability.piped import Reader

logger = logging.getLogger("authsvc")

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
BCRYPT = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
#: What must not be seen, and a text that it comes in.
SECRET_TEXTS = {
    "access token": (JWT, f"token {JWT} refused"),
    "bearer": ("s3cr3t.t0ken", "sent Authorization: Bearer s3cr3t.t0ken"),
    "basic": ("Y2xpZW50OnNlY3JldA==", "sent basic Y2xpZW50OnNlY3JldA=="),
    "bcrypt": (BCRYPT[7:], f"stored {BCRYPT} is odd"),
    "tagged hash": ("n0tbcrypt" * 4, "stored $hmac-bcrypt$" + "n0tbcrypt" * 4),
    "dsn": ("hunter2", "cannot connect to postgresql://app:hunter2@db:5432/auth"),
    "dsn with @": ("p@ss/w0rd", "redis://:p@ss/w0rd@cache:6379 is down"),
    "conninfo": ("hunter2", "host=db password=hunter2 dbname=auth"),
    "parameters": ("hunter2", "[parameters: {'new_password': 'hunter2', 'n': 1}]"),
    "e-mail": ("alice@example.com", "Key (email)=(alice@example.com) already exists."),
    "private key": ("MHcCAQEE", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"),
}
SECRET_FIELDS = [
    *("password", "new_password", "token", "access_token", "refreshToken", "Authorization", "TOKEN_SECRET"),
    *("pepper", "password_hash", "dsn", "database_url", "email", "user-email", "jti", "cookie", "api_key"),
]


def fail(text: str) -> NoReturn:
    raise ValueError(text)


@pytest.fixture
def reader():
    pipe = Reader()
    yield pipe
    pipe.close()


@pytest.fixture
def configured(reader):
    """Call it with ``configure``'s arguments; logging is put back to what it was afterwards."""
    root = logging.getLogger()
    before, level, hook = list(root.handlers), root.level, threading.excepthook
    made: list[LogPipe] = []

    def call(level="info", log_format="json"):
        # pytest's own handlers stumble over what some of these tests log.
        root.handlers[:] = [pipe for pipe in root.handlers if isinstance(pipe, PipeHandler)]
        made.append(configure(level, log_format, fd=reader.fd))
        return made[-1]

    yield call
    for pipe in made:
        pipe.flush()
        atexit.unregister(pipe.flush)
    root.handlers[:] = before
    root.setLevel(level)
    threading.excepthook = hook
    logging.captureWarnings(capture=False)
    bind_request("")


@pytest.fixture
def written(configured, reader):
    """Call it with a function that logs; the records that came out."""

    def call(log):
        pipe = configured()
        log()
        assert pipe.flush()
        return [json.loads(line) for line in reader.text().splitlines()]

    return call


def test_a_record_is_one_json_object(written):
    """Time, level and event come first, then the request and the fields."""
    bind_request("req-1")

    (record,) = written(lambda: logger.info("session.started", extra={"session_id": "s", "count": 3}))

    timestamp, *rest = record.items()
    assert TIMESTAMP.fullmatch(timestamp[1])
    assert rest == [
        *(("level", "info"), ("event", "session.started")),
        *(("request_id", "req-1"), ("session_id", "s"), ("count", 3)),
    ]


def test_a_field_cannot_pass_for_the_record_s_own(written):
    """Neither time nor level can be forged by who names a field so."""
    (record,) = written(lambda: logger.info("x.y", extra={"timestamp": "never", "level": "none"}))

    assert TIMESTAMP.fullmatch(record["timestamp"])
    assert record["level"] == "info"


def test_the_request_of_one_thread_is_not_another_s(written):
    """Each record carries the request that its own thread works for."""

    def log():
        bind_request("mine")
        other = threading.Thread(target=lambda: logger.info("other.done"))
        other.start()
        other.join()
        logger.info("mine.done")

    records = written(log)

    assert [(r["event"], r.get("request_id")) for r in records] == [
        ("other.done", None),
        ("mine.done", "mine"),
    ]


def test_levels_below_the_configured_one_are_silent(written):
    """For our own records and for those of libraries."""

    def log():
        logger.debug("a.b")
        logging.getLogger("library").debug("chatter")
        logger.error("c.d")

    assert [record["event"] for record in written(log)] == ["c.d"]


def test_a_library_s_record_has_the_same_shape(written):
    """Foreign records get time, level and request id; their text is a field."""
    bind_request("req-2")

    (record,) = written(lambda: logging.getLogger("library").warning("pool of %d is %s", 5, "full"))

    assert record["event"] == "library.logged"
    assert (record["logger"], record["message"]) == ("library", "pool of 5 is full")
    assert (record["level"], record["request_id"]) == ("warning", "req-2")


def test_an_event_and_its_fields_are_the_record_s_own(written):
    """``noun.verb`` is the event, ``extra`` its fields."""
    logger = logging.getLogger("authsvc.store")

    (record,) = written(lambda: logger.warning("reconciler.lagging", extra={"lag": 3}))

    assert (record["event"], record["lag"]) == ("reconciler.lagging", 3)
    assert "message" not in record


def test_arguments_that_do_not_fit_their_message_lose_no_record(written):
    """A library's slip in a log call is not ours to fall over."""
    (record,) = written(lambda: logging.getLogger("library").error("%d items", "many"))

    assert record["message"] == "%d items"


def test_a_warning_becomes_a_record(written):
    """Nothing writes past the pipe, Python's own warnings included."""

    def log():
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            logging.captureWarnings(capture=True)
            warnings.warn("old ways", UserWarning, stacklevel=1)

    (record,) = written(log)

    assert "old ways" in record["message"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_a_thread_by_an_error_is_a_record(written):
    """A background thread does not die unseen."""

    def log():
        thread = threading.Thread(target=lambda: 1 // 0, name="reconciler")
        thread.start()
        thread.join()

    (record,) = written(log)

    assert (record["event"], record["thread_name"]) == ("thread.failed", "reconciler")
    assert "ZeroDivisionError" in record["exception"]


@pytest.mark.parametrize("name", SECRET_FIELDS)
def test_a_field_named_like_a_secret_is_masked(written, name):
    """Whatever its spelling, and however deep."""

    def log():
        logger.info("x.y", extra={name: "in clear"})
        logger.info("x.y", extra={"outer": {"inner": [{name: "in clear"}]}})

    assert "in clear" not in json.dumps(written(log))


@pytest.mark.parametrize("name", ["token_type", "email_digest", "hash_seconds", "passwords_hashed"])
def test_a_field_that_speaks_of_a_secret_is_kept(written, name):
    """The last word counts: a digest of an e-mail is no e-mail."""
    (record,) = written(lambda: logger.info("x.y", extra={name: "kept"}))

    assert record[name] == "kept"


@pytest.mark.parametrize(("secret", "text"), SECRET_TEXTS.values(), ids=SECRET_TEXTS.keys())
def test_a_secret_in_a_text_is_masked_wherever_it_stands(written, secret, text):
    """In fields, events, messages of libraries, keys of dicts and tracebacks."""

    def log():
        logger.info("x.y", extra={"note": text, "notes": [text], "more": {text: text}})
        logger.info(text)
        logging.getLogger("library").warning("%s", text)
        try:
            fail(text)
        except ValueError:
            logger.exception("x.failed")

    records = written(log)

    assert len(records) == 4
    assert secret not in json.dumps(records)


@pytest.mark.parametrize(
    "text",
    ["/v1/users/0b9e4b0e", "reached 10/15minutes", "key authsvc:v1:auth:session:0b9e", "pool size = 5"],
)
def test_an_innocent_text_is_left_as_it_is(written, text):
    """A log that masks everything says nothing."""
    (record,) = written(lambda: logger.info("x.y", extra={"note": text}))

    assert record["note"] == text


def test_an_email_is_logged_as_a_keyed_digest():
    """The same address gives the same 16 characters, under another key others."""
    digest = email_digest(b"key", "alice@example.com")

    assert digest == email_digest(b"key", "alice@example.com")
    assert digest != email_digest(b"other", "alice@example.com")
    assert len(digest) == 16
    assert int(digest, 16)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_a_caller_sends_cannot_forge_a_line(configured, reader, log_format):
    """Line feeds, escape sequences and bidirectional marks never reach the output as they are."""
    evil = 'x\n2026-11-20T12:00:00Z info forged.event\r\x1b[2J\x00\u202e\u2028\ud800"'
    pipe = configured(log_format=log_format)

    logger.info("x.y", extra={"note": evil})
    logging.getLogger("library").warning(evil)
    pipe.flush()

    text = reader.text()
    assert len(text.splitlines()) == 2
    assert not set("\x1b\x00\r\u202e\u2028") & set(text)


def test_the_console_shows_columns_and_an_indented_traceback(configured, reader):
    """For eyes: values are quoted where they must be, and an error's own line feeds are no new record."""
    pipe = configured(log_format="console")

    try:
        fail("first\n2026-11-20T12:00:00Z info forged.event")
    except ValueError:
        logger.exception("x.failed", extra={"plain": "word", "quoted": "two words", "n": 1})
    pipe.flush()

    first, *rest = reader.text().splitlines()
    timestamp, columns = first.split(" ", 1)
    assert TIMESTAMP.fullmatch(timestamp)
    assert columns == 'error    x.failed plain=word quoted="two words" n=1'
    assert all(line.startswith("    ") for line in rest)
    assert len(rest) >= 4


def test_values_of_any_type_come_out_as_json(written):
    """What JSON does not know is told as text, what is deep or long is cut, bytes are only counted."""
    loop: dict[str, object] = {}
    loop["self"] = loop
    identifier = UUID(int=1)

    (record,) = written(
        lambda: logger.info(
            "x.y",
            extra={"id": identifier, "raw": b"secret", "some": (1, {2}), "loop": loop, "long": "x" * 9999},
        )
    )

    assert record["id"] == str(identifier)
    assert record["raw"] == "<6 bytes>"
    assert record["some"] == [1, [2]]
    assert record["loop"] == {"self": {"self": {"self": {"self": "…"}}}}
    assert len(record["long"]) == 1024


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**5000], ids=["nan", "infinity", "digits"])
def test_a_number_that_json_cannot_carry_costs_the_fields_not_the_record(written, value):
    """The line stays JSON for every parser."""
    (record,) = written(lambda: logger.info("x.y", extra={"number": value}))

    assert (record["event"], record["unrenderable"]) == ("x.y", ["number"])


def test_a_line_is_never_longer_than_a_pipe_keeps_whole(written, reader):
    """4,096 bytes: beyond, the lines of two workers could run into each other."""

    def log():
        logger.info("x.y", extra={f"field_{n}": "ü" * 1024 for n in range(20)})
        try:
            fail("ü" * 9999)
        except ValueError:
            logger.exception("x.failed")

    records = written(log)

    assert [(r["event"], r["truncated"]) for r in records] == [("x.y", True), ("x.failed", True)]
    assert all(len(json.dumps(record)) < 4096 for record in records)
    assert records[1]["exception"].endswith("\n")


def test_configuring_again_replaces_what_was_there(configured, reader):
    """One line a record, in the new format."""
    configured()

    pipe = configured("warning", "console")
    logger.info("a.b")
    logging.getLogger("library").warning("once")
    pipe.flush()

    (line,) = reader.text().splitlines()
    assert line.endswith("logger=library message=once")
