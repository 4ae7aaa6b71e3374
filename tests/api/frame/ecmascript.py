"""Regular expressions as ECMA-262 reads them with the ``u`` flag, the dialect of JSON Schema."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What may follow a backslash (ECMA-262, Pattern[+UnicodeMode]), ``-`` within a class alone.
_ESCAPED = re.compile(
    r"""[\^$\\.*+?()\[\]{}|/dDsSwWbBfnrtv-]|0(?![0-9])|[1-9]|c[A-Za-z]|x[0-9A-Fa-f]{2}
    |u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\}|[pP]\{[\w=]+\}|k<\w+>""",
    re.VERBOSE,
)
_GROUP = re.compile(r"\(\?(?::|=|!|<=|<!|<\w+>)")


def refused(patterns: Iterable[str]) -> list[str]:
    """Which of *patterns* are none; by Node.js as well where there is one."""
    wanted = list(patterns)
    found = {pattern for pattern in wanted if not _is_pattern(pattern)}
    node = shutil.which("node")
    if node:
        script = """
            const none = (p) => { try { new RegExp(p, "u"); return false } catch { return true } };
            console.log(JSON.stringify(JSON.parse(process.argv[1]).filter(none)));
        """
        done = subprocess.run(
            [node, "-e", script, json.dumps(wanted)], capture_output=True, text=True, check=True, timeout=60
        )
        found |= set(json.loads(done.stdout))
    return sorted(found)


def _is_pattern(pattern: str) -> bool:
    plain = re.sub(
        r"\\(.)", lambda escape: "" if _ESCAPED.match(pattern, escape.start() + 1) else "\\", pattern
    )
    groups = plain.count("(?") == len(_GROUP.findall(plain))
    return "\\" not in plain and groups and not re.search(r"[*+?}]\+", plain)
