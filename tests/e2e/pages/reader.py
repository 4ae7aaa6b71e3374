"""The commands that pages of the documentation print, run word for word in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests import ROOT

BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
#: Programs that the tests cannot run: what they are asked for is kept, and nothing is done.
RECORDER = """#!/bin/sh
printf '%s' "$(basename "$0")" >> "$HOME/asked"
printf ' %s' "$@" >> "$HOME/asked"
echo >> "$HOME/asked"
"""


def commands(page: str, section: str) -> str:
    """The shell blocks of one section of a page of docs/ (or of the README)."""
    text = (ROOT / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "".join(block for _, block in BLOCK.findall(text))


@dataclass
class Reader:
    """Somebody who pastes what a page prints: with a home, a shell and *stubs* in place of programs."""

    home: Path
    folder: Path
    stubs: dict[str, str] = field(default_factory=dict)

    def paste(self, script: str, *, shell: str = "bash") -> str:
        """Run *script*, which may not fail, and tell what it printed; the shell's umask is as it was."""
        programs = self.home / "programs"
        programs.mkdir(exist_ok=True)
        for name, text in self.stubs.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        command = programs / "authsvc"
        if not command.exists():
            command.write_text(
                f"#!{sys.executable}\\nimport sys\\nsys.path.insert(0, {str(ROOT)!r})\\n"
                "from authsvc.cli import main\\nsys.exit(main())\\n".replace("\\n", "\n")
            )
            command.chmod(0o755)
        done = subprocess.run(
            [shell, "-e", "-c", f"umask 022\n{script}\ntest $(umask) = 0022"],
            cwd=self.folder,
            env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    @property
    def asked(self) -> list[str]:
        """What the stubs were asked for, one line each."""
        return (self.home / "asked").read_text().splitlines()
