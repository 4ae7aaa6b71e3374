"""Cache metrics of all workers together, and the ratios computed from their sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class MetricSource(Protocol):
    """A source of metrics: a registry, or the files of all workers."""

    def collect(self) -> Iterable[Metric]:
        """Every metric with its samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTotals:
    """Counts since the start of the service; ``operations_s`` in seconds."""

    hits: int
    misses: int
    operations: int
    operations_s: float
    active_locks: int

    @property
    def hit_ratio(self) -> float:
        """Between 0 and 1; 0 without any lookup."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


def cache_totals(source: MetricSource) -> CacheTotals:
    """Sum up what *source* collects; takes about a millisecond."""
    sums: dict[str, float] = {}
    for metric in source.collect():
        for sample in metric.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return CacheTotals(
        hits=int(sums.get("user_cache_hits_total", 0)),
        misses=int(sums.get("user_cache_misses_total", 0)),
        operations=int(sums.get("cache_operation_latency_seconds_count", 0)),
        operations_s=sums.get("cache_operation_latency_seconds_sum", 0.0),
        active_locks=int(sums.get("cache_active_locks", 0)),
    )


class Ratios(Collector):
    """Hit ratios, computed on each scrape: gauges of workers cannot be added."""

    def __init__(self, source: MetricSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Both ratios, over all workers since the start."""
        ratio = cache_totals(self._source).hit_ratio
        yield GaugeMetricFamily("user_cache_hit_ratio", "Share of users found in the cache.", value=ratio)
        yield GaugeMetricFamily("cache_hit_rate", "Share of look-ups that the cache answered.", value=ratio)
