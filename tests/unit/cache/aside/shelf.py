"""Books, and a shelf that counts what is asked of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from authsvc.cache import MISSING, Entry, KeySpace, Shape

KEYS = KeySpace("lib")
SPACE = KEYS.space("book", ttl_s=100)
KEY = "lib:v1:book:7"
LEASE = "lib:v1:lease:{lib:v1:book:7}"


@dataclass(frozen=True)
class Book:
    """A row: its id, its title, its version."""

    id: str
    title: str
    version: int = 1


SHAPE = Shape(
    schema=1,
    dump=lambda book: Entry({"id": book.id, "title": book.title}, book.version),
    load=lambda entry: Book(str(entry.fields["id"]), str(entry.fields["title"]), entry.row_version),
)
EMMA, ULYSSES = Book("7", "Emma"), Book("8", "Ulysses")


class Shelf:
    """The truth: counts what is asked of it, one by one or many at once."""

    def __init__(self, *books):
        self.books = {book.id: book for book in books}
        self.asked = []
        self.meanwhile = lambda: None
        self.error = None

    def __call__(self, ident):
        """Load a book, with something happening between the read and the return."""
        return self.many((ident,)).get(ident, MISSING)

    def many(self, idents):
        """Load those that there are."""
        self.asked.append(tuple(idents))
        if self.error:
            raise self.error
        found = {ident: self.books[ident] for ident in idents if ident in self.books}
        self.meanwhile()
        return found


class Later(deque[Callable[[], None]]):
    """A refresher whose work waits until the test wants it done."""

    def submit(self, _key, work):
        """Take *work*."""
        self.append(work)
        return True


def outcomes(log):
    """Return what the cache told, without the client's own operations."""
    return [f"{subject.split()[0]} {outcome}" for subject, outcome in log if subject.endswith(" book")]


def count(log, name):
    """Return how many times the client did *name*."""
    return sum(subject == name for subject, _ in log)


def age(client, seconds, *, beyond_s=3600):
    """Let the cached book be *seconds* past its life."""
    client.call("PEXPIRE", KEY, round((beyond_s - seconds) * 1000))
