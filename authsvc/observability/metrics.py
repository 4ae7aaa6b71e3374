"""
What the service counts: prometheus_client behind small verbs, right with many worker processes.

With ``PROMETHEUS_MULTIPROC_DIR`` set (the server sets it) each process keeps its figures in files there
and any one of them answers for all.  The folder may be wiped under a running service: nothing fails, and
:meth:`Metrics.heal` writes the figures into new files.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from flask import Flask
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_flask_exporter import PrometheusMetrics
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics
