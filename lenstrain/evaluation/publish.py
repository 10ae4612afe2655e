"""Write a folder whole or not at all: beside its place, then renamed into it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lensprep.errors import ScoresError

METRICS_NAME = "metrics.json"
REPORT_NAME = "report.html"
CARD_NAME = "model_card.md"


def check_destination(out: Path) -> None:
    """Refuse a destination that holds anything but an earlier evaluation.

    Raises
    ------
    ScoresError
        If `out` is a file, or a folder with other contents.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ScoresError(f"{out} is a file; --out names a folder.")
    if any(out.iterdir()) and not (out / METRICS_NAME).is_file():
        raise ScoresError(
            f"{out} is not empty and holds no earlier evaluation; give --out another folder."
        )


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `out` if nothing fails.

    An earlier evaluation at `out` is replaced as a whole; on failure it stays as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        draft.chmod(0o755)
        yield draft
        check_destination(out)
        _replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _replace(draft: Path, out: Path) -> None:
    if not out.exists():
        draft.rename(out)
        return
    old = draft.with_suffix(".old")
    out.rename(old)
    try:
        draft.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
