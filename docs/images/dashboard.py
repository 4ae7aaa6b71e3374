"""
Draws ``dashboard.png``: the panels of the shipped dashboard, over two minutes in which Redis is killed.

    python docs/images/dashboard.py

It starts PostgreSQL, Redis, the service and Prometheus on this machine, sends a small load, kills Redis for
20 seconds, asks Prometheus for every expression of ``k8s/observability/dashboard.json`` and plots what it
answers.  It is no screenshot of Grafana: colours and layout are its own; panels, expressions, legends and
figures are not.

Beside the packages of the tests it needs Prometheus (Debian: ``apt install prometheus``) and matplotlib: it
is a dependency of nothing else here, ``pip install matplotlib`` into the environment that runs this.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib as mpl
import requests
from matplotlib.figure import Figure
from PIL import Image

from tests.rig import PASSWORD, Service, environment, migrate, run_command
from tests.servers import PostgresServer, RedisServer
from tests.servers.prometheus import OBSERVABILITY, PrometheusServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

PICTURE = Path(__file__).with_name("dashboard.png")
CALM_S, OUTAGE_S, AFTERWARDS_S = 60, 20, 50
#: What Grafana would put in the place of ``$__rate_interval`` for a scrape every half second.
RATE_INTERVAL = "10s"
STEP_S = 1
USERS = 12
COLUMNS = 3
#: So many lines have their legend in two columns.
MANY_LINES = 4
INK, GRID, OUTAGE = "#24292f", "#d8dee4", "#ffdbd7"
COLOURS = ("#1a7f37", "#0969da", "#bc4c00", "#8250df", "#bf3989", "#9a6700", "#1b7c83", "#cf222e")


@dataclass
class Load:
    """A few requests a second of every kind, each kind in a thread of its own, until it is stopped."""

    service: Service
    pairs: list[dict[str, Any]]
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        kinds: list[tuple[float, Callable[[int], object]]] = [
            (0.04, self._check), (0.3, self._refresh), (1.5, self._log_in_and_out), (0.2, self._read),
            (2.5, self._mistake), (4, self._batch),
        ]  # fmt: skip
        self.threads = [threading.Thread(target=self._repeat, args=kind, daemon=True) for kind in kinds]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End, when the requests under way are answered."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _repeat(self, pause_s: float, act: Callable[[int], object]) -> None:
        turn = 0
        while not self.stopped.wait(pause_s):
            act(turn)
            turn += 1

    def _token(self, turn: int) -> str:
        token: str = self.pairs[turn % USERS]["access_token"]
        return token

    def _check(self, turn: int) -> None:
        self.service.verify("no token" if turn % 25 == 0 else self._token(turn))

    def _read(self, turn: int) -> None:
        self.service.call("GET", "/v1/me", token=self._token(turn))

    def _refresh(self, turn: int) -> None:
        token = self.pairs[turn % USERS]["refresh_token"]
        answer = self.service.call("POST", "/v1/auth/refresh", json={"refresh_token": token})
        if answer.ok:
            self.pairs[turn % USERS] |= answer.json()

    def _log_in_and_out(self, turn: int) -> None:
        answer = self._log_in(email(turn % USERS), PASSWORD)
        if answer.ok:
            self.service.call("POST", "/v1/auth/logout", token=answer.json()["access_token"])

    def _mistake(self, _turn: int) -> None:
        self._log_in(email(USERS), "wrong horse battery staple")

    def _batch(self, _turn: int) -> None:
        admin = self.pairs[0]["access_token"]
        self.service.call("GET", "/v1/batch/users/lookup", token=admin, params={"ids": self.pairs[0]["id"]})
        self.service.call("GET", "/v1/users", token=admin)

    def _log_in(self, address: str, password: str) -> requests.Response:
        form = {"email": address, "password": password}
        return self.service.call("POST", "/v1/auth/login", json=form)


def email(number: int) -> str:
    """The address of one of the users."""
    return f"user{number}@example.com"


def main() -> None:
    """Record two minutes and draw them."""
    panels = json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"]
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as redis,
        PostgresServer() as postgres,
    ):
        env = environment(
            postgres.create_database(), redis.url, Path(folder), RATE_LIMIT_LOGIN_ACCOUNT="10/15minutes"
        )
        migrate(env)
        with Service(env, Path(folder)).start(ready_within_s=60) as service:
            pairs = people(service)
            with PrometheusServer(service) as prometheus:
                began_s, killed_s, ended_s = live_through(Load(service, pairs), redis)
                answers = [series(prometheus, panel, began_s, ended_s) for panel in panels]
    draw(panels, answers, began_s, killed_s)


def people(service: Service) -> list[dict[str, Any]]:
    """Users who are logged in, the first an admin."""
    idents = [service.register(email(number)).json()["id"] for number in range(USERS + 1)]
    command = ("users", "set-role", email(0), "admin")
    run_command(*command, env=service.env, folder=service.log.parent, within_s=60).check_returncode()
    return [
        {**service.log_in(email(number)), "id": ident}
        for number, ident in enumerate(idents)
        if number < USERS
    ]


def live_through(load: Load, redis: RedisServer) -> tuple[float, float, float]:
    """Let it run, kill Redis, bring it back empty; when it began, when it was killed, when it ended."""
    load.start()
    began_s = time.time()
    time.sleep(CALM_S)
    killed_s = time.time()
    redis.kill()
    time.sleep(OUTAGE_S)
    redis.start()
    time.sleep(AFTERWARDS_S)
    load.stop()
    return began_s, killed_s, time.time()


Line = tuple[str, list[float], list[float]]


def series(prometheus: PrometheusServer, panel: dict[str, Any], began_s: float, ended_s: float) -> list[Line]:
    """What Prometheus recorded for the expressions of *panel*: legend, seconds, values."""
    lines = []
    for target in panel["targets"]:
        answer = requests.get(
            f"http://{prometheus.host}:{prometheus.port}/api/v1/query_range",
            params={
                "query": target["expr"].replace("$__rate_interval", RATE_INTERVAL),
                "start": str(began_s),
                "end": str(ended_s),
                "step": str(STEP_S),
            },
            timeout=30,
        ).json()
        for found in answer["data"]["result"]:
            points = [(float(at) - began_s, float(value)) for at, value in found["values"]]
            lines.append(
                (legend(target["legendFormat"], found["metric"]), *map(list, zip(*points, strict=True)))
            )
    return lines


def legend(form: str, labels: dict[str, str]) -> str:
    """The legend of one line, as Grafana fills it in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), form).replace("127.0.0.1", "…")


def draw(panels: list[dict[str, Any]], answers: list[list[Line]], began_s: float, killed_s: float) -> None:
    """One plot for each panel, in the order of the dashboard, into a small file."""
    rows = -(-len(panels) // COLUMNS)
    mpl.rcParams.update({"font.size": 8, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID})
    figure = Figure(figsize=(15, 2.5 * rows), dpi=90, layout="constrained")
    back_s = CALM_S + OUTAGE_S
    figure.suptitle(f"Redis is killed after {CALM_S} s, and comes back empty after {back_s} s", fontsize=11)
    grid = figure.subplots(rows, COLUMNS)
    for place in grid.flat[len(panels) :]:
        place.set_axis_off()
    for place, panel, lines in zip(grid.flat, panels, answers, strict=False):
        plot(place, panel, lines, outage_s=killed_s - began_s)
    figure.savefig(PICTURE)
    with Image.open(PICTURE) as image:
        image.convert("RGB").quantize(256).save(PICTURE, optimize=True)


def plot(place: Axes, panel: dict[str, Any], lines: list[Line], *, outage_s: float) -> None:
    """Draw one panel, with the outage behind it."""
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    factor, name = {"s": (1000, "ms"), "reqps": (1, "per s"), "percentunit": (100, "%")}.get(unit, (1, ""))
    place.set_title(panel["title"], loc="left", fontweight="bold", fontsize=9)
    place.axvspan(outage_s, outage_s + OUTAGE_S, color=OUTAGE, linewidth=0)
    for number, (title, seconds, values) in enumerate(sorted(lines)):
        place.plot(
            seconds, [factor * value for value in values],
            label=title, color=COLOURS[number % len(COLOURS)], linewidth=1.3,
        )  # fmt: skip
    place.set_xlim(0, CALM_S + OUTAGE_S + AFTERWARDS_S)
    finite = [factor * value for _, _, values in lines for value in values if math.isfinite(value)]
    highest = max(finite, default=0)
    # Room for the legend.
    place.set_ylim(0, 1.45 * highest or 1)
    place.set_ylabel(name)
    place.grid(color=GRID, linewidth=0.6)
    place.spines[["top", "right"]].set_visible(False)
    if lines:
        place.legend(loc="upper left", fontsize=7, frameon=False, ncols=2 if len(lines) >= MANY_LINES else 1)
    else:
        place.text(
            0.5, 0.5, "none in these two minutes", transform=place.transAxes, ha="center", color="#6e7781"
        )


if __name__ == "__main__":
    main()
