"""What a sweep found: the refits compared, a configuration and a command, and two figures."""

from __future__ import annotations

import json
import shlex
import statistics
import warnings
from typing import Any

import numpy as np
import optuna
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from lensprep.configfile import to_toml
from lensprep.dataset import Dataset
from lensprep.store import write_atomic
from lenstrain.evaluation.metrics import higher_is_better, steering
from lenstrain.figures import BLUE, GREEN, GREY, RED, STYLE
from lenstrain.sweep.config import Plan
from lenstrain.sweep.study import StudyFiles, best_trials, hopeless
from lenstrain.sweep.work import RESULT, refit_config


def recommend(study: optuna.Study, dataset: str, plan: Plan, files: StudyFiles) -> dict[str, Any]:
    """Compare the refits, write what is recommended, draw the figures.

    Returns
    -------
    dict
        ``study``, ``folder``, ``objective``, ``trials`` (counts by state), ``failures`` (by
        reason), ``best`` (of the search), ``refits`` (best mean first), ``recommended`` (trial,
        mean, std, config, command; None if no refit succeeded), ``importance``, ``plots``,
        ``notes``.
    """
    trials = study.get_trials(deepcopy=False)
    best = best_trials(study, 1)
    refits = compare_refits(study, plan, files)
    chosen = next((entry for entry in refits if entry["mean"] is not None), None)
    result: dict[str, Any] = {
        "study": str(files.database),
        "folder": str(files.folder),
        "objective": plan.search.objective,
        "trials": {
            state.name.lower(): sum(t.state == state for t in trials) for state in TrialState
        },
        "failures": [
            {"trial": t.number, "reason": t.user_attrs.get("failure", "unknown")}
            for t in trials
            if t.state == TrialState.FAIL
        ],
        "best": describe_trial(best[0]) if best else None,
        "refits": refits,
        "recommended": chosen and write_recommended(chosen, study, dataset, plan, files),
        "importance": importance(study),
        "notes": notes(Dataset.open(dataset), plan) + given_up(trials, plan),
    }
    result["plots"] = draw(study, plan, files, result["importance"])
    write_atomic(files.folder / "sweep.json", json.dumps(result, indent=1, default=str).encode())
    return result


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
            outcome = json.loads(path.read_text()) if path.exists() else {"failure": "not run"}
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


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each key in the variance of the objective (fANOVA), largest first; {} if unknown."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 4 or len({t.value for t in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # no key varies among the finished trials
        return {}
    return {key: float(value) for key, value in found.items()}


def draw(study: optuna.Study, plan: Plan, files: StudyFiles, shares: dict[str, float]) -> list[str]:
    """Draw the history, and the importance if it is known; returns the files."""
    with rc_context(STYLE):
        figures = {"history.png": history_figure(study, plan)}
        if shares:
            figures["importance.png"] = importance_figure(shares, plan)
        for name, figure in figures.items():
            figure.savefig(files.folder / name, dpi=200)
    return [str(files.folder / name) for name in figures]


def history_figure(study: optuna.Study, plan: Plan) -> Figure:
    """Value of every trial by number, the best so far, and where trials failed."""
    trials = study.get_trials(deepcopy=False)
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    axes = figure.subplots()
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    pruned = [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]
    failed = [t.number for t in trials if t.state == TrialState.FAIL]
    best = np.fmax if higher_is_better(plan.search.objective) else np.fmin
    if done:
        numbers, values = [t.number for t in done], [t.value for t in done]
        axes.plot(numbers, values, "o", color=BLUE, label="completed")
        axes.step(numbers, best.accumulate(values), color=GREEN, where="post", label="best so far")
    if pruned:
        reached = [best.reduce(list(t.intermediate_values.values())) for t in pruned]
        axes.plot([t.number for t in pruned], reached, "x", color=GREY, label="pruned")
    for number in failed:
        label = "failed" if number == failed[0] else None
        axes.axvline(number, color=RED, linestyle=":", linewidth=1, label=label)
    axes.set_xlabel("Trial")
    axes.set_ylabel(f"{_objective(plan)} (validation)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _objective(plan: Plan) -> str:
    """The objective in words."""
    metric = steering()[plan.search.objective]
    rate = f" {100 * plan.base.eval.fpr:g}%" if metric.kind == "rate" else ""
    return metric.title + rate


def importance_figure(shares: dict[str, float], plan: Plan) -> Figure:
    """Share of each key in the variance of the objective."""
    names = [*reversed(shares)]
    figure = Figure(figsize=(5.0, 0.8 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.set_xlim(0, max(shares.values()) * 1.15)
    axes.set_xlabel(f"Share in the variance of {_objective(plan)} (fANOVA)")
    return figure
