"""
Checks rendered Kubernetes YAML against what the service needs: ``authsvc config check --manifest``.

``documents`` parses, ``environment`` computes what a container gets, ``checks`` finds problems.
"""

from __future__ import annotations

from collections.abc import Callable

from authsvc.cli.manifest.checks import problems
from authsvc.cli.manifest.documents import Manifest, ManifestError

__all__ = ["ManifestError", "check_manifest"]


def check_manifest(text: str, warn: Callable[[str], None]) -> str:
    """
    Check every pod that runs the service; returns a text about what was checked.

    Opens no connection; *warn* is called for what is allowed but looks wrong.  The values of Secrets that
    are not in *text* are assumed to be correct.

    Raises:
        ManifestError: lists all problems.
    """
    manifest = Manifest.from_yaml(text)
    pods = [pod for pod in manifest.pods() if pod.own_containers()]
    if not pods:
        raise ManifestError(["no workload runs authsvc: no container has its image, command or name"])
    found = [problem for pod in pods for problem in problems(pod, manifest, warn)]
    if found:
        raise ManifestError(found)
    return "; ".join(f"{pod.title} ({', '.join(each.name for each in pod.own_containers())})" for pod in pods)
