"""Does a finder know lenses that it has not been shown? Leave one kind out, train, and compare.

For each value of a factor (an Einstein radius, a source magnitude, a mass model) one network is
trained without the lenses of that value and compared, on exactly those lenses, with one that was
trained with all. Non-lenses are the same for both. Both are resampled on the same regions, so that
shared noise cancels in the difference.

The last checkpoints are compared, and no run is stopped early: the validation split has lenses of
the kind that was left out, and must not choose the checkpoint.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.configfile import to_mapping, to_toml
from lensprep.dataset import Dataset
from lensprep.dataset.layout import COUNTERFACTUAL, ORIGIN, SIMULATED
from lensprep.dataset.sidecar import is_counterfactual, read_origins
from lensprep.dataset.strictjson import plain
from lensprep.dataset.where import compile_where
from lensprep.errors import ConfigError, DatasetError, names_text
from lensprep.store import Uri, check_file, check_folder, exists, is_remote, join_uri, open_store
from lensprep.tables.reader import read_table
from lenstrain.config import Config, completed
from lenstrain.evaluation.compare import compare
from lenstrain.evaluation.completeness import axis_bins
from lenstrain.evaluation.headline import headline_origin
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.origins import judge_origins
from lenstrain.evaluation.rate_table import supports_of
from lenstrain.evaluation.scores import Scores, read_scores

FACTORS = ("theta_e_arcsec", "src_dmag", "lens_model")
RESULT_NAME = "generalize.json"
TABLE_NAME = "generalize.md"

_BINS = 4
"""Bins of a factor that is continuous, by its quantiles."""
_LARGEST_DROP = 0.05
"""Loss of completeness that is tolerated. The interval decides: a finder holds if a larger loss is
excluded, falls if a smaller one is, and otherwise the lenses are too few to say."""
_FEWEST_LENSES = 30
"""With fewer an interval from draws of regions is too narrow to be believed."""
_BEGUN = "all/run/config.toml"
"""The first file of a comparison, by which an interrupted one is recognised."""

Progress = Callable[[str, float], None]
"""Called with what begins and the share of the work done before it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of lens to leave out."""

    factor: str
    value: str
    """For people: ``0.6``, ``SIE``, or a range."""
    others: str
    """Filter that keeps everything but the lenses of this kind."""
    train_lenses: int
    """Lenses of this kind in the training split."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        plain_value = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.value)
        return f"without-{self.factor}-{plain_value}"


def plan_cases(lenses: pa.Table, factor: str, kept: str = "label == 0") -> list[Case] | str:
    """Kinds of lenses to leave out by one factor, or why it cannot be tested.

    Parameters
    ----------
    lenses : pyarrow.Table
        The lenses of the training split, with the factor as a column.
    factor : str
        One of `FACTORS`, or any other column of numbers or text.
    kept : str
        Filter of the rows that are never left out.

    Returns
    -------
    list of Case, or str
        A sentence if there is nothing to leave out.
    """
    if factor not in lenses.column_names:
        return f"the dataset has no column {factor}"
    column = lenses[factor]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cases = list(_text_cases(factor, column.cast(pa.string()), kept))
    else:
        cases = list(_number_cases(factor, column.cast(pa.float64()).to_numpy(), kept))
    if not cases:
        return f"no training lens has a {factor}"
    if len(cases) == 1:
        return f"all training lenses have {factor} {cases[0].value}: nothing else to learn it from"
    return cases


def _text_cases(factor: str, column: pa.ChunkedArray, kept: str) -> Iterator[Case]:
    counts = {e["values"]: e["counts"] for e in pc.value_counts(column.drop_null()).to_pylist()}
    for value in sorted(counts):
        yield Case(factor, value, f"{kept} or {factor} != {json.dumps(value)}", counts[value])


def _number_cases(factor: str, values: NDArray[np.float64], kept: str) -> Iterator[Case]:
    bins = axis_bins(factor, values, _BINS)
    if bins is None:
        return
    which = bins.assign(values)
    for index in range(bins.size):
        others = [kept]
        if index > 0:
            others.append(f"{factor} < {float(bins.edges[index])!r}")
        if index < bins.size - 1:
            others.append(f"{factor} >= {float(bins.edges[index + 1])!r}")
        count = int(np.sum(which == index))
        yield Case(factor, bins.label(index), " or ".join(others), count)


def generalize(
    dataset: str,
    config: Config,
    out: Uri,
    *,
    factors: Sequence[str] = FACTORS,
    split: str = "test",
    fpr: float = 1e-3,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train with and without each kind of lens, and compare.

    Of rows of several origins the lenses of one are left out and compared on, the one that
    `lenstrain evaluate` has in its headline; those of the others stay in training.

    An interrupted call can be repeated: finished runs and scores are kept. Under torchrun all
    processes train and score together, and the first one writes the result.

    Parameters
    ----------
    dataset : str
    config : Config
        Of every run; its filter holds together with the one that leaves lenses out.
    out : str or path
        Folder, local or s3://, for the runs, the scores and the result.
    factors : sequence of str
        Columns whose values are left out in turn.
    split : str
        Split to compare on.
    fpr : float
        False-positive rate at which completeness is compared.
    options : EvaluationOptions, optional
        Draws and level.
    progress : callable, optional

    Returns
    -------
    dict
        The content of generalize.json: ``origin`` if the dataset states it, ``factors`` {name:
        {testable, reason, cases[]}}, ``tolerated_loss``, ``passed`` (False if a case falls, True if
        all hold, else None). A case holds ``value``, ``train_lenses``, ``n``, ``tpr`` and ``auroc``
        ``{value, low, high, level, this, other}`` on the lenses left out
        (``this`` is the network without them, ``other`` the one with all), the same for the
        ``others``, ``supported`` and ``passed``: True if the interval excludes a loss larger than
        the tolerated one, False if it excludes a smaller one, None (with ``reason``) if neither.

    Raises
    ------
    ConfigError
        If the configuration asks for what cannot be compared, or no origin has both classes.
    DatasetError
        If the dataset lacks lenses or the split.
    StorageError
        If `out` cannot be written.
    """
    if config.train.checkpoint_copy is not None:
        raise ConfigError(
            "train.checkpoint_copy is for one run, and generalize makes many. Leave it out."
        )
    if exists(join_uri(out, _BEGUN)):
        check_file(join_uri(out, RESULT_NAME))
    else:
        check_folder(out, RESULT_NAME)
    data = Dataset.open(dataset)
    data.split(split)
    _check_columns(data, factors)
    config = replace(config, train=replace(config.train, patience=0))
    options = replace(options or EvaluationOptions(), fprs=(fpr,))
    origin = _headline(data, split)
    kept = "label == 0" if origin is None else f"label == 0 or {_elsewhere(origin)}"
    plans = {factor: plan_cases(_lenses(data, factor, origin), factor, kept) for factor in factors}
    cases = [case for plan in plans.values() if isinstance(plan, list) for case in plan]
    is_main = _is_main()
    tell = progress if progress and is_main else (lambda name, done: None)
    found: dict[str, dict[str, Any]] = {}
    if cases:
        tell("with all lenses", 0.0)
        everything = _scores(data, config, join_uri(out, "all"), split)
        for done, case in enumerate(cases, 1):
            tell(case.name.replace("-", " ", 1), done / (len(cases) + 1))
            where = config.data.where
            where = case.others if where is None else f"({where}) and ({case.others})"
            left_out = replace(config, data=replace(config.data, where=where))
            scores = _scores(data, left_out, join_uri(out, case.name), split)
            found[case.name] = _compare(case, scores, everything, options, fpr)
    settings = {"split": split, "fpr": fpr, "dataset": dataset, "tolerated_loss": _LARGEST_DROP}
    settings |= {} if origin is None else {"origin": origin}
    result = plain(_result(plans, found) | settings)
    if is_main:
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        store = open_store(out)
        store.write(RESULT_NAME, text.encode())
        store.write(TABLE_NAME, as_markdown(result).encode())
    tell("done", 1.0)
    return result


def _is_main() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _check_columns(data: Dataset, factors: Sequence[str]) -> None:
    """Refuse a column that is missing, unless it is one of `FACTORS`: it may be mistyped."""
    have = data.read_shard_sidecar(data.split("train").shards[0]).column_names
    for factor in factors:
        if factor not in have and factor not in FACTORS:
            raise ConfigError(
                f"{data.uri} has no column {factor!r} for --hold-out; it has: "
                f"{names_text(have, factor)}."
            )


def _headline(data: Dataset, split: str) -> str | None:
    """The origin whose lenses are compared on; None if the dataset states none."""
    columns = data.columns(split)
    if ORIGIN not in columns:
        return None
    wanted = [name for name in ("label", ORIGIN, COUNTERFACTUAL) if name in columns]
    table = data.read_sidecar(split, wanted)
    table = table.filter(pa.array(~is_counterfactual(table)))
    origins, labels = read_origins(table), table["label"].to_numpy()
    names = sorted(origins.unique().to_pylist())
    found = headline_origin({name: labels[pc.equal(origins, name).to_numpy()] for name in names})
    if found is None:
        raise ConfigError(
            f"Split {split!r} of {data.uri} has no origin ({', '.join(names)}) with both classes: "
            "what is found of one origin cannot be compared with non-lenses of another."
        )
    return found


def _elsewhere(origin: str) -> str:
    """Filter of the rows of other origins; null and empty text mean simulated."""
    if origin == SIMULATED:
        return f'{ORIGIN} not in ("{SIMULATED}", "")'
    return f"{ORIGIN} is null or {ORIGIN} != {json.dumps(origin)}"


def _lenses(data: Dataset, factor: str, origin: str | None = None) -> pa.Table:
    """The column of one factor, if it is there, of the training lenses, of one origin or all."""
    shards = data.split("train").shards
    have = data.read_shard_sidecar(shards[0]).column_names
    columns = [name for name in ("label", factor, COUNTERFACTUAL, ORIGIN) if name in have]
    table = data.read_sidecar("train", list(dict.fromkeys(columns)))
    table = table.filter(pa.array(~is_counterfactual(table)))
    if origin is not None:
        table = table.filter(pc.equal(read_origins(table), origin))
    lenses = table.filter(pc.equal(table["label"], 1))
    if not lenses.num_rows:
        of = "" if origin is None else f" of origin {origin}"
        raise DatasetError(f"{data.uri} has no lens{of} in its training split.")
    return lenses


def _scores(data: Dataset, config: Config, folder: str, split: str) -> Scores:
    """Scores of the run of one configuration; run and scores are made only if missing."""
    # Torch takes seconds to import, and what cannot be tested needs none of it.
    from lenstrain.scoring.infer import infer
    from lenstrain.training.train import train

    path, run = join_uri(folder, f"{split}.parquet"), join_uri(folder, "run")
    store, stated = open_store(folder), "config.toml"
    made_by = tomllib.loads(store.read(stated).decode()) if store.has(stated) else None
    if exists(path) and made_by is not None and completed(made_by) == to_mapping(config):
        scores = read_scores(path)
        if scores.metadata.get("dataset_id") == data.dataset_id:
            return scores
    place: Any = run if is_remote(run) else Path(run)
    result = train(data.uri, config, place, resume=True)
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    infer(
        result["last"],
        data.uri,
        split=split,
        out=path,
        batch_size=config.eval.batch_size,
        device=config.train.device,
    )
    if _is_main():
        store.write(stated, to_toml(config).encode())
    return read_scores(path)


def _compare(
    case: Case, scores: Scores, everything: Scores, options: EvaluationOptions, fpr: float
) -> dict[str, Any]:
    """The two networks on the lenses that one of them never saw, and on the others."""
    scores, everything = (judge_origins(of, None, False).scores for of in (scores, everything))
    lens = scores.labels == 1
    kept = compile_where(case.others)
    in_file = kept.mask(read_table(scores.path, kept.columns).table)
    unseen = lens & ~in_file[scores.in_file(np.arange(scores.n))]
    entry: dict[str, Any] = {
        "value": case.value,
        "train_lenses": case.train_lenses,
        "n": int(unseen.sum()),
        "supported": supports_of(scores, [fpr], options.delta)[0]["supported"],
        "tpr": None,
        "auroc": None,
        "others": None,
        "passed": None,
    }
    if not unseen.any():
        return entry | {"reason": "no such lens to compare on"}
    entry |= _differences(scores, everything, unseen, options)
    others = lens & ~unseen
    if others.any():
        entry["others"] = _differences(scores, everything, others, options)
    if entry["tpr"]["value"] is None:
        return entry | {"reason": entry["tpr"]["reason"]}
    passed, reason = judge(entry["tpr"], entry["n"])
    return entry | {"passed": passed, "reason": reason}


def judge(difference: dict[str, Any], n: int) -> tuple[bool | None, str | None]:
    """Whether completeness holds on lenses never seen, by the interval of its difference.

    Parameters
    ----------
    difference : dict
        ``low`` and ``high`` of completeness without such lenses less with them, or None.
    n : int
        Lenses of this kind that were compared on.

    Returns
    -------
    passed : bool or None
        True if a loss of more than 5 points is excluded, False if one of 5 points or less is.
    reason : str or None
        Why neither can be said.
    """
    low, high = difference["low"], difference["high"]
    if n < _FEWEST_LENSES:
        return None, f"{n} lenses are too few to say"
    if low is None or high is None:
        return None, "too few regions to say: one has no interval"
    if low >= -_LARGEST_DROP:
        return True, None
    if high < -_LARGEST_DROP:
        return False, None
    return None, (
        f"too few to say: a loss of {100 * _LARGEST_DROP:g} pp is neither excluded nor certain"
    )


def _differences(
    scores: Scores, everything: Scores, lenses: NDArray[np.bool_], options: EvaluationOptions
) -> dict[str, Any]:
    """Completeness and AUROC of some lenses against all non-lenses, first less second."""
    rows = np.flatnonzero(lenses | (scores.labels == 0))
    first, second = (
        replace(
            of,
            table=of.table.take(pa.array(rows)),
            labels=of.labels[rows],
            logits=of.logits[rows],
            region=of.region[rows],
        )
        for of in (scores, everything)
    )
    found = compare(first, second, options)
    return {"tpr": next(iter(found["tpr_at_fpr"].values())), "auroc": found["auroc"]}


def _result(plans: dict[str, list[Case] | str], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    factors: dict[str, Any] = {}
    for factor, plan in plans.items():
        if isinstance(plan, str):
            factors[factor] = {"testable": False, "reason": f"not testable: {plan}", "cases": []}
        else:
            rows = [found[case.name] for case in plan]
            factors[factor] = {"testable": True, "reason": None, "cases": rows}
    verdicts = {case["passed"] for factor in factors.values() for case in factor["cases"]}
    passed = False if False in verdicts else True if verdicts == {True} else None
    return {"factors": factors, "passed": passed}


COLUMNS = ("left out", "lenses", "without", "with all", "difference", "others", "verdict")


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """A row of `COLUMNS` for each case, and for each factor that cannot be tested."""
    rows = []
    for factor, entry in result["factors"].items():
        if not entry["testable"]:
            rows.append([factor, "", "", "", "", "", entry["reason"]])
        rows += [_row(factor, case) for case in entry["cases"]]
    return rows


def words(result: dict[str, Any]) -> str:
    """What the table holds."""
    of = f"{result['origin']} rows of the " if "origin" in result else ""
    return (
        f"Completeness at {_rate(result)} on the {of}{result['split']} split, of the network that "
        "never saw such lenses and of the one trained with all; brackets are intervals of the "
        "difference, from resampling whole regions. It holds where a loss of more than "
        f"{100 * _LARGEST_DROP:g} pp is excluded, and falls where one is certain."
    )


def too_few(result: dict[str, Any]) -> list[str]:
    """Says so if the non-lenses do not support the rate."""
    cases = [case for entry in result["factors"].values() for case in entry["cases"]]
    few = f"The non-lenses are too few to support {_rate(result)}."
    return [] if all(case["supported"] for case in cases) else [few]


def as_markdown(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(result)]
    lines = ["# Lenses that were left out of training", "", words(result), ""]
    lines += ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
    return "\n".join([*lines, *(f"\n{few}" for few in too_few(result))]) + "\n"


def _rate(result: dict[str, Any]) -> str:
    return f"FPR {100 * result['fpr']:g}%"


def _row(factor: str, case: dict[str, Any]) -> list[str]:
    head = [f"{factor} {case['value']}", f"{case['n']:,}"]
    tpr = case["tpr"]
    if tpr is None or tpr["value"] is None:
        return [*head, "", "", "", "", case["reason"]]
    others = case["others"]["tpr"]["value"] if case["others"] else None
    verdict = {True: "holds", False: "falls", None: case.get("reason", "")}[case["passed"]]
    interval = "" if tpr["low"] is None else f" [{100 * tpr['low']:+.1f}, {100 * tpr['high']:+.1f}]"
    return [
        *head,
        f"{100 * tpr['this']:.1f}%",
        f"{100 * tpr['other']:.1f}%",
        f"{100 * tpr['value']:+.1f} pp{interval}",
        "" if others is None else f"{100 * others:+.1f} pp",
        verdict,
    ]


def check_factors(factors: Sequence[str]) -> None:
    """Refuse names that could not be columns, before anything is read."""
    for factor in factors:
        if not factor.isidentifier() or factor in ("label", "key"):
            raise ConfigError(
                f"--hold-out {factor!r} is not a column that can be used; the usual ones are "
                f"{', '.join(FACTORS)}."
            )
