"""What an operator sees of a fault: lines of the log, figures of the scrape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.rig import Service


@dataclass(frozen=True, slots=True)
class Signs:
    """What has shown since :meth:`of` was called."""

    service: Service
    figures: dict[str, float]
    log_bytes: int

    @classmethod
    def of(cls, service: Service) -> Signs:
        """Begin to look."""
        return cls(service, figures(service), service.log.stat().st_size)

    def wait_for(self, wanted: tuple[str, ...], *, timeout_s: float) -> None:
        """Wait until all of *wanted* has shown."""
        try:
            wait_until(lambda: not self.missing(wanted), timeout_s=timeout_s)
        except TimeoutError:
            raise AssertionError(f"not seen: {self.missing(wanted)}") from None

    def missing(self, wanted: tuple[str, ...]) -> set[str]:
        """Those of *wanted* that have not shown: ``log <event>``, or a sample that has not risen."""
        now, events = figures(self.service), self.events()
        return {sign for sign in wanted if not self._shows(sign, now, events)}

    def events(self) -> set[str]:
        """The events in the log since then."""
        with self.service.log.open("rb") as log:
            log.seek(self.log_bytes)
            whole, _, _ = log.read().rpartition(b"\n")
        return {json.loads(line)["event"] for line in whole.splitlines() if line.startswith(b'{"')}

    def _shows(self, sign: str, now: dict[str, float], events: set[str]) -> bool:
        kind, _, event = sign.partition(" ")
        return event in events if kind == "log" else now.get(sign, 0) > self.figures.get(sign, 0)


def figures(service: Service) -> dict[str, float]:
    """Every sample of the scrape, by name and labels."""
    with urlopen(service.metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}
