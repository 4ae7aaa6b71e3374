"""The page about the cache says what works."""

from __future__ import annotations

import re

from tests import ROOT

PAGE = ROOT / "docs" / "cache.md"


def test_the_blocks_of_the_page_run_in_order(redis_url):
    """Every example, against a real server; each line of it keeps its number for the reader of a failure."""
    text = PAGE.read_text(encoding="utf-8")
    names = {"url": redis_url, "__name__": "fieldwork"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))

    for block in blocks:
        line = text[: block.start(1)].count("\n")
        code = compile("\n" * line + block.group(1), str(PAGE), "exec", dont_inherit=True)
        exec(code, names)

    assert len(blocks) >= 10
