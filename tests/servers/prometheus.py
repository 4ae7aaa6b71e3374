"""A Prometheus of the tests' own, with the rules that the project ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
import yaml

from tests import ROOT
from tests.processes import ServerProcess
from tests.rig import HOPELESS_S
from tests.servers.binaries import prometheus_binary

if TYPE_CHECKING:
    from tests.rig import Service

OBSERVABILITY = ROOT / "k8s" / "observability"


class PrometheusServer(ServerProcess):
    """Scrapes the metrics of *service* every second, and evaluates the alerts as often."""

    name = "prometheus"

    def __init__(self, service: Service) -> None:
        super().__init__()
        config = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
        config["global"] = {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "1s",
        }
        config["rule_files"] = [str(OBSERVABILITY / "alerts.yaml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service.metrics_port}"]}]
        self.config = self.folder / "prometheus.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that *expression* yields now; raises AssertionError with Prometheus' own words."""
        answer = self._get("query", query=expression)
        found: list[dict[str, Any]] = answer["result"]
        return found

    def alerts(self) -> dict[str, dict[str, Any]]:
        """The rules by the name of their alert."""
        groups = self._get("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"http://{self.host}:{self.port}/api/v1/{path}"
        answer = requests.get(url, params=parameters, timeout=HOPELESS_S).json()
        assert answer["status"] == "success", answer
        data: dict[str, Any] = answer["data"]
        return data

    def _command(self) -> list[str]:
        return [
            str(prometheus_binary()),
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.host}:{self.port}",
            "--log.level=warn",
        ]

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"http://{self.host}:{self.port}/-/ready", timeout=1).status_code == 200
        except requests.RequestException:
            return False
