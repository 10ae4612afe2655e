"""What a sweep found: the refits compared, a configuration and a command, figures and a page."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student

from lensprep.configfile import to_toml
from lensprep.dataset import Dataset
from lensprep.errors import count_text, time_text
from lensprep.store import write_atomic
from lenstrain import __version__
from lenstrain.evaluation.metrics import steering
from lenstrain.pages.files import PagePlot, save_plot
from lenstrain.pages.page import render
from lenstrain.sweep.config import Plan, baseline_values
from lenstrain.sweep.figures import draw_study, objective_title
from lenstrain.sweep.importance import DRAWS, Importance, importance
from lenstrain.sweep.space import Dimension
from lenstrain.sweep.study import StudyFiles, best_trials, hopeless
from lenstrain.sweep.work import RESULT, refit_config

PAGE_NAME = "sweep.html"
FIGURES = "figures"
_NOT_RUN = "not run"
_STATES = (
    ("complete", "finished"), ("pruned", "pruned"), ("fail", "failed"), ("running", "running"),
)  # fmt: skip
_SECTIONS = (
    ("recommended", "Recommended"), ("trials", "Best trials"), ("figures", "Figures"),
    ("importances", "Importance"), ("failures", "Failures"), ("space", "What was searched"),
    ("provenance", "Provenance"),
)  # fmt: skip
_SHOWN = 20
"""Best trials that are listed."""


def recommend(study: optuna.Study, dataset: str, plan: Plan, files: StudyFiles) -> dict[str, Any]:
    """Compare the refits, write what is recommended, draw the figures, write the page.

    A study that is not finished yet has no recommendation.

    Returns
    -------
    dict
        ``study``, ``folder``, ``report`` (the page), ``objective``, ``progress`` (trials and refits
        that have ended and that there will be, and ``finished``), ``trials`` (counts by state),
        ``failures`` (by trial), ``best`` (of the search), ``best_trials`` (at most 20),
        ``refits`` (best mean first),
        ``recommended`` (trial, mean, std, config, command; None if no refit succeeded),
        ``importance`` (share of each key; None where the trials are too few, ``importance_reason``
        saying so) with ``importance_range`` (lowest and highest share of each key), ``plots``,
        ``notes``.
    """
    opened = Dataset.open(dataset)
    trials = study.get_trials(deepcopy=False)
    best = [describe_trial(trial) for trial in best_trials(study, _SHOWN)]
    refits = compare_refits(study, plan, files)
    progress = how_far(trials, refits, plan)
    chosen = next((entry for entry in refits if entry["mean"] is not None), None)
    if not progress["finished"]:
        chosen = None
    shares = importance(study)
    result: dict[str, Any] = {
        "study": str(files.database),
        "folder": str(files.folder),
        "report": str(files.folder / PAGE_NAME),
        "objective": plan.search.objective,
        "progress": progress,
        "trials": {
            state.name.lower(): sum(t.state == state for t in trials) for state in TrialState
        },
        "failures": [
            {"trial": t.number, "reason": t.user_attrs.get("failure", "unknown")}
            for t in trials
            if t.state == TrialState.FAIL
        ],
        "best": best[0] if best else None,
        "best_trials": best,
        "refits": refits,
        "recommended": chosen and write_recommended(chosen, study, dataset, plan, files),
        "importance": shares.shares or None,
        "importance_range": shares.ranges or None,
        "importance_reason": shares.reason,
        "notes": notes(opened, plan) + given_up(trials, plan),
    }
    folder = files.folder / FIGURES
    folder.mkdir(exist_ok=True)
    figures = {plot.name: save_plot(plot, folder) for plot in draw_study(trials, plan, shares)}
    result["plots"] = [str(folder / f"{name}.png") for name in figures]
    write_atomic(files.folder / "sweep.json", json.dumps(result, indent=1, default=str).encode())
    context = page_context(result, study, plan, shares, figures)
    context["provenance"] = provenance(result, opened, plan)
    write_atomic(files.folder / PAGE_NAME, render("sweep.html", context).encode())
    return result


def how_far(
    trials: Sequence[FrozenTrial], refits: Sequence[dict[str, Any]], plan: Plan
) -> dict[str, Any]:
    """Trials and refits that have ended, and how many there will be."""
    ended = sum(trial.state.is_finished() for trial in trials)
    left = sum(failure.endswith(_NOT_RUN) for entry in refits for failure in entry["failures"])
    planned = len(refits) * len(plan.refit.seeds)
    searched = ended >= plan.search.trials or hopeless(trials, plan)
    waiting = any(trial.state == TrialState.RUNNING for trial in trials)
    return {
        "trials_ended": ended,
        "trials": plan.search.trials,
        "refits_ended": planned - left,
        "refits": planned,
        "finished": searched and not waiting and not left,
    }


def describe_trial(trial: FrozenTrial) -> dict[str, Any]:
    """A trial in plain types."""
    return {
        "trial": trial.number,
        "value": trial.value,
        "params": dict(trial.params),
        "best_epoch": trial.user_attrs.get("best_epoch"),
    }


def compare_refits(study: optuna.Study, plan: Plan, files: StudyFiles) -> list[dict[str, Any]]:
    """Mean and spread of the objective over the seeds of each refitted trial, best mean first.

    A trial of which a refit failed comes after those of which all succeeded.
    """
    entries = []
    for trial in best_trials(study, plan.refit.top):
        values, failures = [], []
        for seed in plan.refit.seeds:
            path = files.refit(trial.number, seed) / RESULT
            outcome = json.loads(path.read_text()) if path.exists() else {"failure": _NOT_RUN}
            if outcome.get("best_value") is None:
                failures.append(f"seed {seed}: {outcome.get('failure', 'no finite value')}")
            else:
                values.append(float(outcome["best_value"]))
        entries.append(
            {
                **describe_trial(trial),
                "values": values,
                "mean": statistics.fmean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "failures": failures,
            }
        )
    sign = steering()[plan.search.objective].sign
    return sorted(
        entries, key=lambda e: (len(e["failures"]), -sign * (e["mean"] if e["values"] else 0.0))
    )


def write_recommended(
    chosen: dict[str, Any], study: optuna.Study, dataset: str, plan: Plan, files: StudyFiles
) -> dict[str, Any]:
    """Write the recommended configuration and say how to train with it."""
    trial = study.get_trials(deepcopy=False)[chosen["trial"]]
    config = refit_config(files, trial, plan.base.train.seed, plan)
    path = files.folder / "recommended.toml"
    spread = "" if chosen["std"] is None else f" +- {chosen['std']:.4f}"
    head = (
        f"# Recommended by the study {files.database.name}: trial {trial.number}, whose "
        f"{plan.search.objective}\n# over {len(chosen['values'])} seeds is {chosen['mean']:.4f}"
        f"{spread} on the validation split.\n\n"
    )
    write_atomic(path, (head + to_toml(config)).encode())
    command = shlex.join(
        ["lenstrain", "train", dataset, "--config", str(path), "--out",
         str(files.folder / "recommended")]
    )  # fmt: skip
    write_atomic(files.folder / "recommended.sh", (command + "\n").encode())
    return {
        "trial": trial.number,
        "mean": chosen["mean"],
        "std": chosen["std"],
        "config": str(path),
        "command": command,
    }


def notes(dataset: Dataset, plan: Plan) -> list[str]:
    """What a reader of the recommendation must know."""
    found = []
    negatives = dataset.split("val").ordinary_classes["0"]
    above = plan.base.eval.fpr * negatives
    if plan.search.objective == "tpr_at_fpr" and above < 10:
        found.append(
            f"The validation split has {negatives:,} non-lenses: at FPR {plan.base.eval.fpr:g} the "
            f"objective rests on {above:.1f} of them, so the trials differ by luck. Raise "
            "fixed.eval.fpr, or take objective = 'nll'."
        )
    if plan.search.objective == "auroc":
        found.append(
            "AUROC alone does not say whether a finder works at the false-positive rates that can "
            "be inspected: compare tpr_at_fpr of the refits."
        )
    if plan.search.objective == "nll" and any(d.key.startswith("loss.") for d in plan.space):
        found.append(
            "The space varies the loss: focal loss and label smoothing distort probabilities, and "
            "the NLL penalises that, though calibration could repair it."
        )
    return found


def given_up(trials: list[FrozenTrial], plan: Plan) -> list[str]:
    """A note if the sweep ended early because trial after trial failed."""
    if not hopeless(trials, plan):
        return []
    last = [trial for trial in trials if trial.state == TrialState.FAIL][-1]
    return [
        f"The last {plan.search.failures_in_a_row} trials failed, so the search ended: "
        f"{last.user_attrs.get('failure', 'unknown')}"
    ]


def page_context(
    result: dict[str, Any],
    study: optuna.Study,
    plan: Plan,
    shares: Importance,
    figures: dict[str, PagePlot],
) -> dict[str, Any]:
    """What the page shows, as plain values; `result` is the content of sweep.json."""
    trials = study.get_trials(deepcopy=False)
    failures = defaultdict(list)
    for failure in result["failures"]:
        failures[failure["reason"]].append(failure["trial"])
    seconds = [trial.user_attrs.get("seconds", 0.0) for trial in trials]
    base = baseline_values(plan)
    return {
        "s": result,
        "name": Path(result["study"]).stem,
        "sections": [
            (id, title) for id, title in _SECTIONS if id != "trials" or result["best_trials"]
        ],
        "states": ", ".join(
            f"{result['trials'][state]} {word}"
            for state, word in _STATES
            if result["trials"][state]
        ),
        "objective": objective_title(plan),
        "better": "highest" if steering()[plan.search.objective].sign > 0 else "lowest",
        "search": plan.search,
        "seeds": plan.refit.seeds,
        "keys": [dimension.key for dimension in plan.space],
        "first": _first(trials, plan),
        "best_rows": [
            trial | {"settings": [setting(trial["params"].get(d.key)) for d in plan.space]}
            for trial in result["best_trials"]
        ],
        "finished": result["trials"]["complete"],
        "failures": sorted(failures.items(), key=lambda item: -len(item[1])),
        "spent": time_text(sum(seconds)),
        "search_epochs": (searched := _epochs(plan)),
        "refit_epochs": count_text(plan.refit.epochs, "epoch") if plan.refit.epochs else searched,
        "luck": _least_shown(len(plan.refit.seeds)),
        "space": [
            (d.key, span(d), conditions(d), setting(base[d.key]) if d.key in base else "outside")
            for d in plan.space
        ],
        "figures": figures,
        "importance_rows": [
            (key, share, *shares.ranges[key]) for key, share in shares.shares.items()
        ],
        "draws": DRAWS,
    }


def _first(trials: Sequence[FrozenTrial], plan: Plan) -> float | None:
    """Value of the base configuration, if the study began with it and it finished."""
    began = plan.search.baseline and bool(trials) and trials[0].number == 0
    return trials[0].value if began and trials[0].state == TrialState.COMPLETE else None


def _epochs(plan: Plan) -> str:
    """How long trials are trained."""
    if any(dimension.key == "train.epochs" for dimension in plan.space):
        return "epochs as drawn"
    return count_text(plan.base.train.epochs, "epoch")


def _least_shown(seeds: int) -> float | None:
    """Difference of two means that a t test shows at 95 %, in standard deviations of one."""
    if seeds < 2:
        return None
    return float(student.ppf(0.975, 2 * seeds - 2)) * math.sqrt(2 / seeds)


def setting(value: Any) -> str:
    """A value of a setting as people write it; a dash if a trial has none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def span(dimension: Dimension) -> str:
    """The values that a setting may take."""
    if dimension.choices:
        return ", ".join(setting(dimension.stored(choice)) for choice in dimension.choices)
    step = "" if dimension.step is None else f" in steps of {dimension.step:g}"
    return f"{dimension.low:g} to {dimension.high:g}{step}{', logarithmic' * dimension.log}"


def conditions(dimension: Dimension) -> str:
    """When a setting is drawn."""
    return " and ".join(f"{key} = {value}" for key, value in dimension.when.items()) or "always"


def provenance(result: dict[str, Any], dataset: Dataset, plan: Plan) -> list[tuple[str, str]]:
    """Where the figures come from."""
    return [
        ("Study", result["study"]),
        ("Runs", result["folder"]),
        ("Dataset", dataset.uri),
        ("Dataset id", dataset.dataset_id),
        ("Judged on", "the validation split; the test split was not opened"),
        ("Search", ", ".join(f"{key} = {value}" for key, value in asdict(plan.search).items())),
        ("Refits", ", ".join(f"{key} = {value}" for key, value in asdict(plan.refit).items())),
        ("Versions", f"lenstrain {__version__}, optuna {optuna.__version__}"),
    ]
