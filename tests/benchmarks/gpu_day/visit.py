"""A visit runs its parts: each a process with a limit, none past the end of the visit."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_day.table import Table

ROOT = Path(__file__).parents[3]
LEAST_SECONDS = 12.0
"""A part that would get less is left out: importing torch alone takes some of it."""
DRY_SLOWNESS = 6.0
"""Limits of a dry visit are so much longer: what it is tried on may be small and busy."""
_HERE = "tests.benchmarks.gpu_day"


class Visit:
    """One visit, from now on.

    Parameters
    ----------
    table : Table
    work : Path
        Empty folder for the dataset and the run.
    seconds : float
        Limit of the whole visit, as the limits of its parts on a machine with a GPU.
    dry : bool
        Tiny sizes.
    """

    def __init__(self, table: Table, work: Path, seconds: float, *, dry: bool = False) -> None:
        self.table, self.work, self.dry = table, work, dry
        self.slowness = DRY_SLOWNESS if dry else 1.0
        self.seconds = seconds * self.slowness
        self.dataset = work / "dataset"
        self._shown = 0
        self.started = time.time()
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        }

    def say(self, line: str) -> None:
        """Add a line to the table, and print what has come to it meanwhile."""
        self.table.say(line)
        self._show()

    def _show(self) -> None:
        text = self.table.text()
        print(text[self._shown :], end="", flush=True)
        self._shown = len(text)

    def spent(self) -> float:
        """Seconds since the start."""
        return time.time() - self.started

    def at(self, seconds: float) -> float:
        """The time of day so many seconds after the start, for another process."""
        return self.started + seconds * self.slowness

    def log(self, name: str) -> Path:
        """What a part said."""
        return self.table.folder / f"{name}.log"

    def install(self, wheels: Path) -> None:
        """Install wheels without a network into the work folder, for this visit alone."""
        site = self.work / "site"
        found = sorted(map(str, wheels.glob("*.whl")))
        if not found:
            self.say(f"wheels: none in {wheels}")
            return
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
                   "--no-index", "--no-deps", "--no-compile", "--no-cache-dir",
                   "--target", str(site), *found]  # fmt: skip
        self.run("wheels", 60, command)
        self.environment["PYTHONPATH"] = f"{site}{os.pathsep}{self.environment['PYTHONPATH']}"

    def part(self, name: str, most: float, *options: str) -> bool:
        """Run one function of `parts`."""
        return self.run(name, most, self.command("parts", name, *options))

    @contextmanager
    def beside(self, name: str, most: float, module: str) -> Iterator[None]:
        """Run a module of this package beside the block."""
        process = self._start(name, self.command(module))
        limit = time.time() + self._limit(most)
        try:
            yield
        except BaseException:
            limit = 0.0
            raise
        finally:
            self._finish(name, process, limit - time.time())

    def lenstrain(self, name: str, most: float, *words: Any) -> bool:
        """Run a command as a user would."""
        return self.run(name, most, [sys.executable, "-m", "lenstrain", *map(str, words)])

    def run(self, name: str, most: float, command: list[str]) -> bool:
        """Run a command to its end, or that of its time; a line says if it did not succeed."""
        limit = self._limit(most)
        if limit < LEAST_SECONDS:
            self.say(f"{name}: left out, no time left")
            return False
        return self._finish(name, self._start(name, command), limit)

    def command(self, module: str, *options: str) -> list[str]:
        """Run a module of this package in its place; options may change that."""
        places = ["--work", str(self.work), "--out", str(self.table.folder)]
        dry = ["--dry"] if self.dry else []
        return [sys.executable, "-m", f"{_HERE}.{module}", *places, *dry, *options]

    def has(self, module: str) -> bool:
        """Whether a module is installed."""
        return importlib.util.find_spec(module) is not None

    def _limit(self, most: float) -> float:
        return min(most * self.slowness, self.seconds - self.spent())

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log(name).open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=ROOT,
                start_new_session=True,  # so that a limit ends its children too
            )

    def _finish(self, name: str, process: subprocess.Popen[bytes], seconds: float) -> bool:
        fault: str | None = None
        try:
            status = process.wait(max(seconds, 0))
            fault = f"exit {status}" if status else None
        except subprocess.TimeoutExpired:
            fault = "not done in its time"
        finally:
            with suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if fault is not None:
            self.say(f"{name}: {fault}{last_error(self.log(name))}")
        self._show()
        return fault is None


def last_error(log: Path) -> str:
    """The last line of a log that names an error, to follow a colon."""
    lines = log.read_text(errors="replace").splitlines()
    named = [line.strip() for line in lines if "error" in line.lower()]
    return f": {named[-1][:180]}" if named else ""
