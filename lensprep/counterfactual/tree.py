"""Writes counterfactuals as a Phase 4c tree: one part file for each file of the source.

::

    OUT/<folders of the source>/counterfactual-<name of the file>
    OUT/_account.json            what was made, from what; with OUT/_SUCCESS the end of the run
    OUT/_temporary/              until then: the run's settings, and what each finished file holds

A tree with ``_temporary`` is refused by every reader as unfinished, as Spark's is.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

import numpy as np

from lensprep.counterfactual.balance import FEATURES, separation
from lensprep.counterfactual.family import Made, Making, make_families
from lensprep.counterfactual.plan import Families, plan_families
from lensprep.counterfactual.stamp import Psf
from lensprep.dataset.layout import COUNTERFACTUALS, LENSED
from lensprep.dataset.strictjson import check_object, parse_json, plain
from lensprep.engine import run_tasks
from lensprep.errors import ConfigError, ProjectError, SchemaError, StorageError
from lensprep.extras import install_hint
from lensprep.source.tree import Source
from lensprep.store import S3Options, Store, is_remote, local_path, open_store
from lensprep.store.files import is_within

ACCOUNT_NAME: Final = "_account.json"
MARK: Final = "_SUCCESS"
_TEMPORARY = "_temporary"
_SETTINGS = f"{_TEMPORARY}/settings.json"
_SAMPLE = 3000
"""Stamps of each class and kind on which the balance is measured."""


def make_counterfactuals(
    src: str,
    out: str,
    *,
    kinds: Sequence[str] = COUNTERFACTUALS,
    share: float = 0.2,
    seed: int = 0,
    psf: Psf = "gaussian",
    photon_noise: bool = True,
    workers: int | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    options: S3Options | None = None,
) -> dict[str, Any]:
    """Make families of counterfactuals from a Phase 4c tree.

    The bytes depend on the source, `kinds`, `share`, `seed`, `psf` and `photon_noise` alone, not on
    the number of workers or on interruptions.

    Parameters
    ----------
    src : str or path
        Tree of Phase 4c, local or s3://.
    out : str or path
        Folder to make, local or s3://; empty or new, unless `resume`.
    kinds : sequence of str
        Some of `lensprep.dataset.layout.COUNTERFACTUALS`.
    share : float
        Share of the non-lenses that become hosts, in (0, 1]; each gets one row of every kind.
    seed : int
    psf : {"gaussian", "moffat"}
        Shape of the PSF through which light is added, of the host's FWHM.
    photon_noise : bool
        Whether the added light brings its Poisson noise.
    workers : int, optional
        Processes; by default as many as there are processors.
    resume : bool
        Keep the files that an interrupted run of the same settings has finished.
    progress : callable, optional
        Called with a stage, the files done and all files.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    dict
        out; settings (source, source_digest, kinds, share, seed, psf, photon_noise); hosts, donors,
        families, rows; kinds, skipped and splits (counts); unusable (rows of the source that are
        neither host nor donor, by reason); balance (AUROC between lenses and each kind of non-lens
        by fluxes, statistics of the normalisation, and annulus); files, bytes, seconds, rows_per_s.

    Raises
    ------
    ConfigError
        If a number is out of range or a kind unknown.
    InputError, SchemaError
        If the source cannot be read, or lacks what arcs are traced from.
    StorageError
        If `out` is in use, lies in the source, or cannot be written.
    ProjectError
        If lenstronomy is not installed.
    """
    if find_spec("lenstronomy") is None:
        raise ProjectError(install_hint("lenstronomy"))
    chosen = _checked(kinds, share, seed)
    tell = progress or (lambda stage, done, total: None)
    started = time.perf_counter()
    src, out = str(src), str(out)
    if is_within(out, src) or is_within(src, out):
        raise StorageError(
            f"{out} and {src} lie in one another: the tree could not be told from its source. Name "
            "a folder beside it."
        )
    try:
        source = Source.open(
            src, options=options, progress=lambda done, total: tell("footers", done, total)
        )
    except SchemaError as error:
        raise SchemaError(
            f"Counterfactuals are made of Phase 4c trees alone, and {src} is none: {error}"
        ) from None
    store = open_store(out, options)
    settings = {
        "source": src, "source_digest": source.digest(), "kinds": list(chosen), "share": share,
        "seed": seed, "psf": psf, "photon_noise": photon_noise,
    }  # fmt: skip
    finished = _begin(store, settings, resume=resume)
    if finished is not None:
        return finished
    plan = plan_families(
        source, share, seed, workers, lambda done, total: tell("planning", done, total)
    )
    if not plan.tasks:
        raise ConfigError(
            f"No host is drawn from {plan.hosts:,} at share {share:g}: set it higher."
        )
    making = Making(
        out=out, kinds=chosen, seed=seed, psf=psf, photon_noise=photon_noise,
        sample=-(-_SAMPLE // len(plan.tasks)), options=options,
    )  # fmt: skip
    parts = _make(store, plan.tasks, making, workers, tell)
    seconds = time.perf_counter() - started
    rows = sum(part.kinds.total() for part in parts)
    account = {
        "out": out,
        "settings": settings,
        "hosts": plan.hosts,
        "donors": plan.donors,
        "families": sum(len(task.rows) for task in plan.tasks),
        "rows": rows,
        "kinds": _ordered(sum((part.kinds for part in parts), Counter())),
        "skipped": dict(sorted(sum((part.skipped for part in parts), Counter()).items())),
        "unusable": plan.unusable,
        "splits": _by_split(parts),
        "balance": _balance(parts, chosen),
        "files": len(parts),
        "bytes": sum(part.bytes for part in parts),
    }
    store.write(ACCOUNT_NAME, (json.dumps(plain(account), indent=2) + "\n").encode())
    store.write(MARK, b"")
    _discard_notes(store)
    return account | {"seconds": seconds, "rows_per_s": rows / seconds}


def _checked(kinds: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """The kinds in their usual order."""
    unknown = [kind for kind in kinds if kind not in COUNTERFACTUALS]
    if unknown or not kinds:
        what = f"There is no kind {unknown[0]!r}" if unknown else "No kind is named"
        raise ConfigError(f"{what}; there are: {', '.join(COUNTERFACTUALS)}.")
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share:g}: it must lie above 0 and be at most 1.")
    if seed < 0:
        raise ConfigError(f"A seed is at least 0, not {seed}.")
    return tuple(kind for kind in COUNTERFACTUALS if kind in kinds)


def _begin(store: Store, settings: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """Claim an empty folder, or take up a run of the same settings; its account if it is finished.

    Raises
    ------
    StorageError
        If the folder holds anything else.
    """
    if resume and store.has(MARK) and store.has(ACCOUNT_NAME):
        account = _read(store, ACCOUNT_NAME)
        _compare(store, account["settings"], settings)
        _discard_notes(store)  # a run may have ended between its mark and this
        return account | {"seconds": 0.0, "rows_per_s": 0.0}
    if resume and store.has(_SETTINGS):
        _compare(store, _read(store, _SETTINGS), settings)
        return None
    if store.has_any():
        hint = "Give --resume to finish it" if store.has(_SETTINGS) else "Name another folder"
        raise StorageError(f"{store.uri} is not empty. {hint}, or remove it.")
    store.write(_SETTINGS, json.dumps(settings, indent=2).encode())
    return None


def _discard_notes(store: Store) -> None:
    """Remove what says that the tree is unfinished."""
    for entry in store.entries(f"{_TEMPORARY}/"):
        store.delete(entry.name)
    if not is_remote(store.uri):
        with suppress(FileNotFoundError):
            (local_path(store.uri) / _TEMPORARY).rmdir()


def _read(store: Store, name: str) -> dict[str, Any]:
    return check_object(parse_json(bytes(store.read(name))), f"{store.uri}/{name}")


def _compare(store: Store, before: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if before.get(name) != value:
            raise StorageError(
                f"{store.uri} was begun with {name} {before.get(name)}, not {value}. Resume it "
                "with the same settings, or name another folder."
            )


def _make(
    store: Store,
    tasks: Sequence[Families],
    making: Making,
    workers: int | None,
    tell: Callable[[str, int, int], None],
) -> list[Made]:
    """Make what is not there yet; results in the order of the files."""
    found = {entry.name for entry in store.entries(f"{_TEMPORARY}/")}
    parts: dict[int, Made] = {}
    for task in tasks:
        if _note_name(task.number) in found:
            parts[task.number] = _noted(store, task.number)
    rest = [(task, making) for task in tasks if task.number not in parts]
    for number, made in run_tasks(_make_one, rest, workers=workers):
        parts[number] = made
        store.write(_note_name(number), _note(made))
        tell("making", len(parts), len(tasks))
    return [parts[task.number] for task in tasks]


def _make_one(task: tuple[Families, Making]) -> tuple[int, Made]:
    return task[0].number, make_families(task)


def _note_name(number: int) -> str:
    return f"{_TEMPORARY}/part-{number:06d}.json"


def _note(made: Made) -> bytes:
    """What a finished file holds, for a run that resumes."""
    content = vars(made) | {"features": {n: v.tolist() for n, v in made.features.items()}}
    return json.dumps(content).encode()


def _noted(store: Store, number: int) -> Made:
    content = _read(store, _note_name(number))
    width = max(columns.stop for columns in FEATURES.values())
    content["features"] = {
        group: np.array(rows, np.float64).reshape(-1, width)
        for group, rows in content["features"].items()
    }
    content["splits"] = {split: Counter(kinds) for split, kinds in content["splits"].items()}
    for counts in ("kinds", "skipped"):
        content[counts] = Counter(content[counts])
    return Made(**content)


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {kind: counts[kind] for kind in COUNTERFACTUALS if counts[kind]}


def _by_split(parts: Sequence[Made]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for part in parts:
        for split, counts in part.splits.items():
            found.setdefault(split, Counter()).update(counts)
    return {split: _ordered(counts) for split, counts in sorted(found.items())}


def _balance(parts: Sequence[Made], kinds: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """AUROC of lenses against non-lenses by each set of numbers, of controls and of each kind.

    ``counterfactuals`` is against all kinds that are no lens, mixed as they come.
    """
    groups = {
        name: np.concatenate([part.features[name] for part in parts])
        for name in ("lenses", "controls", *kinds)
    }
    others = [kind for kind in kinds if kind != LENSED]
    if others:
        groups["counterfactuals"] = np.concatenate([groups[kind] for kind in others])
    lenses = groups.pop("lenses")
    return {
        name: {
            group: separation(rows[:, columns], lenses[:, columns])
            for group, rows in groups.items()
        }
        for name, columns in FEATURES.items()
    }
