"""Commands away from the checkout, each with its output in a log."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

OF_THE_CALLER = ("PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS")
"""Variables that begin so would bring the checkout, or the options of `make release`, along."""


class Failed(Exception):
    """A release that cannot be: the message is one line."""


@dataclass(frozen=True)
class Shell:
    """Commands that run in one folder and write into one log.

    Parameters
    ----------
    folder, log : Path
        The folder, and the file that commands and what they print are appended to.
    """

    folder: Path
    log: Path

    def run(self, *command: str | Path, **variables: str) -> str:
        """Run a command to its end, with some more environment variables.

        Returns
        -------
        str
            What it printed.

        Raises
        ------
        Failed
            If it does not exist, or its exit status is not 0.
        """
        words = [*map(str, command)]
        kept = {k: text for k, text in os.environ.items() if not k.startswith(OF_THE_CALLER)}
        with self.log.open("a") as log:
            log.write(f"$ {shlex.join(words)}\n")
            log.flush()
            start = log.tell()
            status = subprocess.run(
                words,
                cwd=self.folder,
                env=kept | {"PYTHONNOUSERSITE": "1"} | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            ).returncode
        if status:
            name = " ".join([Path(words[0]).name, *words[1:4]])
            raise Failed(f"`{name} ...` ended with status {status}: see {self.log}")
        return self.log.read_bytes()[start:].decode()
