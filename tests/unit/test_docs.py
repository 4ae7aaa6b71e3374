"""The pages name what there is, and all of it: events, error codes, metrics, routes, files, links."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry

from authsvc.api import auth, recovery
from authsvc.api.frame.docs import VERIFY_PATH
from authsvc.api.frame.errors import DETAILS
from authsvc.app import BLUEPRINTS
from authsvc.domain import errors
from authsvc.domain.audit import Action
from authsvc.observability.metrics import make_metrics
from tests import ROOT
from tests.unit.sources import modules_below, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")), *sorted(DOCS.rglob("*.md"))]
EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
CODE = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
#: A file with its folder, or a folder: what a reader will look for.
PLACE = re.compile(r"(?!\.)[\w.-]+(?:/[\w.-]+)*/(?:[\w.-]+\.(?:py|lua|toml|yaml|md|txt))?")
#: Where a place may lie: pages say which of these folders theirs begin in.
STARTS = (ROOT, ROOT / "authsvc", ROOT / "tests")
LOGGED = {"debug", "info", "warning", "error", "critical", "exception", "Record"}
#: What the log itself calls the lines of libraries.
FOREIGN = "library.logged"


def title(page: Path) -> str:
    """Return what *page* is called in the project."""
    return str(page.relative_to(ROOT))


def cells(page: str, section: str, column: int) -> list[str]:
    """Return the cells of *column* in the tables of one section of a page."""
    text = (DOCS / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row[column] for row in rows]


def named(lines: list[str]) -> set[str]:
    """Return what stands in backticks in *lines*."""
    return set(chain.from_iterable(map(CODE.findall, lines)))


def logged(tree: ast.Module) -> Iterator[str]:
    """Yield the events that a module hands to a logger."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if called in LOGGED:
            yield from (text for text in texts if isinstance(text, str) and EVENT.fullmatch(text))


def test_every_event_of_the_log_is_explained():
    """Who reads the log finds each event in the table, and no event that is never logged."""
    modules = map(tree_of, modules_below("authsvc"))
    events = {FOREIGN, *chain.from_iterable(map(logged, modules)), *(action.value for action in Action)}

    assert len(events) > 30
    assert named(cells("observability.md", "Logs", 0)) == events


def test_every_error_code_is_explained():
    """A client finds each code that it may branch on, and no code that is never sent."""
    tree = [errors.AuthError]
    for error in tree:
        tree += error.__subclasses__()
    codes = {error.code for error in tree[1:]}

    assert codes
    assert codes <= DETAILS.keys()
    assert named(cells("api.md", "Errors", 1)) - {"code"} == DETAILS.keys()


def test_every_metric_is_explained(monkeypatch):
    """Whoever builds a dashboard finds each series that the service itself makes."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    text, _ = make_metrics(CollectorRegistry()).exposition()
    metrics = set(re.findall(r"^# TYPE (\w+) ", text.decode(), re.MULTILINE))

    explained = named(cells("observability.md", "Metrics", 0))

    assert {name for name in metrics if not name.endswith("_created")} - explained == set()
    assert {name for name in explained if not name.startswith("flask_")} - metrics == set()


def test_every_route_is_explained():
    """Each method and path of the public API stands on its page."""
    app = Flask("routes", static_folder=None)
    by_setting = (auth.registration, recovery.blp, recovery.me, recovery.admin, recovery.invitations)
    for blueprint in (*BLUEPRINTS, *by_setting):
        app.register_blueprint(blueprint)
    app.register_blueprint(recovery.quiet, name="quiet")
    page = (DOCS / "api.md").read_text()
    paths = {re.sub(r"<\w+>", "{id}", rule.rule) for rule in app.url_map.iter_rules()}

    assert {
        path for path in {*paths, VERIFY_PATH} if not re.search(rf"{re.escape(path)}(?![\w/{{-])", page)
    } == set()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_place_that_is_named_exists(page):
    """A path in backticks leads somewhere: below the project, ``authsvc/`` or ``tests/``."""
    places = {text for text in named([FENCED.sub("", page.read_text())]) if PLACE.fullmatch(text)}

    assert {place for place in places if not any((start / place).exists() for start in STARTS)} == set()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_people_are_they(page):
    """Operators, callers and attackers are of any gender."""
    prose = FENCED.sub("", page.read_text())

    assert re.findall(r"\b(?:he|him|his|himself|she|her|herself)\b", prose, re.IGNORECASE) == []


def anchors(page: Path) -> set[str]:
    """Return what a link into *page* may point at."""
    headings = [
        re.sub(r"[^\w\- ]", "", heading.lower())
        for heading in HEADING.findall(FENCED.sub("", page.read_text()))
    ]
    return {heading.replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    """Yield the links of *page* to files, or headings, that are not there."""
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if "://" not in target and not (file.exists() and (not anchor or anchor in anchors(file))):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_link_between_pages_resolves(page):
    """Neither a moved page nor a renamed heading leaves a link to nowhere."""
    assert list(broken(page)) == []


def test_the_index_names_every_page_once():
    """One list of the pages: a question for each, and no second list to keep."""
    index = LINK.findall((DOCS / "README.md").read_text())
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    row = re.compile(r"^\|.*\]\((?:docs/)?(\w[\w-]*\.md)\)", re.MULTILINE)
    lists = [title(page) for page in PAGES if len(pages & {*row.findall(page.read_text())}) > 9]

    assert sorted(link for link in index if link.endswith(".md") and "/" not in link) == sorted(pages)
    assert lists == ["docs/README.md"]


def test_every_page_is_reached_from_the_readme():
    """No page is forgotten."""
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = [target.partition("#")[0] for target in LINK.findall(page.read_text())]
        files = {
            (page.parent / target).resolve()
            for target in targets
            if target.endswith(".md") and "://" not in target
        }
        waiting += sorted(files - reached)

    assert set(PAGES) - reached == set()
