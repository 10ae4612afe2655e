"""What a visit has found: lines for a reader, and figures that goals are held against."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Both grow as they come, in files: parts are processes, and one that is killed has spoken."""

    folder: Path

    @classmethod
    def begin(cls, folder: Path) -> Table:
        """An empty table in a folder; the files of an earlier visit go."""
        for old in (*folder.glob("*.log"), *folder.glob("*.txt"), folder / "figures.json"):
            old.unlink(missing_ok=True)
        return cls(folder)

    def say(self, line: str) -> None:
        with (self.folder / "table.txt").open("a") as file:
            file.write(line + "\n")

    def record(self, **figures: float) -> None:
        """Keep figures by name; of several with one name the last."""
        path = self.folder / "figures.json"
        path.write_text(json.dumps(self.figures() | figures, indent=1))

    def figures(self) -> dict[str, float]:
        path = self.folder / "figures.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def text(self) -> str:
        path = self.folder / "table.txt"
        return path.read_text() if path.exists() else ""
