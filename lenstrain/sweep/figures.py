"""Figures of a study: its course, all trials at once, each setting by itself, importances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lensprep.errors import count_text
from lenstrain.evaluation.metrics import higher_is_better, steering
from lenstrain.figures import BLUE, GREEN, GREY, RED, Plot, new_figure
from lenstrain.sweep.config import Plan
from lenstrain.sweep.importance import DRAWS, Importance
from lenstrain.sweep.space import Dimension

_WIDE = 7.2
_UNSET = -0.13
"""Height of a setting that a trial does not have, below its axis."""
_COLUMNS = 4


def objective_title(plan: Plan) -> str:
    """The objective in words."""
    metric = steering()[plan.search.objective]
    rate = f" {100 * plan.base.eval.fpr:g}%" if metric.kind == "rate" else ""
    return metric.title + rate


def reached(trial: FrozenTrial, plan: Plan) -> float:
    """Value of a finished trial, or the best that another came to; NaN if it came to none."""
    if trial.value is not None:
        return trial.value
    best = np.fmax if higher_is_better(plan.search.objective) else np.fmin
    return float(best.reduce(list(trial.intermediate_values.values()), initial=math.nan))


def draw_study(trials: Sequence[FrozenTrial], plan: Plan, shares: Importance) -> list[Plot]:
    """All figures that a study has the trials for."""
    drawn = [draw_history(trials, plan)]
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        drawn += [draw_parallel(trials, plan), draw_slices(trials, plan)]
    if shares.shares:
        drawn.append(draw_importance(shares, plan))
    return drawn


def draw_history(trials: Sequence[FrozenTrial], plan: Plan) -> Plot:
    """Value of every trial by number, the best so far, and where trials failed."""
    done, pruned = _finished(trials), _pruned(trials)
    failed = [t.number for t in trials if t.state == TrialState.FAIL]
    best = np.fmax if higher_is_better(plan.search.objective) else np.fmin
    numbers, values = [t.number for t in done], [reached(t, plan) for t in done]
    so_far: NDArray[np.floating] = best.accumulate(values) if values else np.empty(0)
    with new_figure(_WIDE, 2.6) as (figure, axes):
        if done:
            axes.plot(numbers, values, "o", color=BLUE, label="finished")
            axes.step(numbers, so_far, color=GREEN, where="post", label="best so far")
        if pruned:
            y = [reached(t, plan) for t in pruned]
            axes.plot([t.number for t in pruned], y, "x", color=GREY, label="pruned: best reached")
        for number in failed:
            label = "failed" if number == failed[0] else None
            axes.axvline(number, color=RED, linestyle=":", linewidth=1, label=label)
        axes.set(xlabel="Trial", ylabel=f"{objective_title(plan)} (validation)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper center", ncols=4)
    return Plot(
        "history",
        "Course of the search",
        "Each trial by its best epoch. A best value that still rises at the end says that more "
        "trials may pay.",
        figure,
        {"trial": numbers, "value": values, "best_so_far": so_far},
    )


def draw_parallel(trials: Sequence[FrozenTrial], plan: Plan) -> Plot:
    """A line for each trial through all its settings to its value."""
    done, pruned = _finished(trials), _pruned(trials)
    sign = 1.0 if higher_is_better(plan.search.objective) else -1.0
    values = np.array([reached(t, plan) for t in done])
    # One bad trial must not take all the colours: the worst tenth shares one.
    worst, best = np.quantile(sign * values, (0.1, 1.0))
    colours = colormaps["viridis_r"](Normalize(worst, max(best, worst + 1e-12))(sign * values))
    low, high = values.min(), values.max()
    heights = (values - low) / (high - low) if high > low else np.full(values.size, 0.5)
    heights = heights if sign > 0 else 1 - heights
    last = len(plan.space)
    with new_figure(max(_WIDE, 1.0 * (last + 1)), 3.6) as (figure, axes):
        for trial in pruned:
            y = [_height(dimension, trial) for dimension in plan.space]
            axes.plot(range(last), y, color=GREY, lw=0.6, alpha=0.25)
        for k in np.argsort(sign * values, kind="stable"):  # the best lies on top
            y = [*(_height(dimension, done[k]) for dimension in plan.space), heights[k]]
            top = k == int(np.argmax(sign * values))
            axes.plot(range(last + 1), y, color=colours[k], lw=2.4 if top else 0.9,
                      alpha=1.0 if top else 0.75)  # fmt: skip
        for x, dimension in enumerate(plan.space):
            _rule(axes, x, _ticks(dimension))
            if dimension.when:
                axes.text(x, _UNSET - 0.02, "not set", ha="center", va="top", fontsize=6,
                          color=GREY)  # fmt: skip
        marks = np.linspace(low, high, 5) if high > low else np.array([low])
        at = np.linspace(0, 1, marks.size) if marks.size > 1 else np.array([0.5])
        _rule(axes, last, list(zip(at if sign > 0 else 1 - at, map(_number, marks), strict=True)))
        names = [dimension.key.replace(".", ".\n") for dimension in plan.space]
        axes.set_xticks(range(last + 1), [*names, "value"])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set(yticks=[], xlim=(-0.55, last + 0.3))
        axes.set_ylim(_UNSET - 0.1 if any(d.when for d in plan.space) else -0.06, 1.06)
        axes.spines[:].set_visible(False)
    beside = f" Grey: {count_text(len(pruned), 'pruned trial')}." if pruned else ""
    return Plot(
        "parallel",
        "Settings and value of every trial",
        f"A line is a trial, from its settings to its {objective_title(plan)} on the right, better "
        "upwards: yellow the worst tenth, violet the best, which is drawn thick. Where violet "
        f"lines meet, a setting matters.{beside}",
        figure,
        {
            "trial": [t.number for t in (*done, *pruned)],
            "state": [t.state.name.lower() for t in (*done, *pruned)],
            "value": [*values, *(reached(t, plan) for t in pruned)],
        }
        | {
            dimension.key: [t.params.get(dimension.key, "") for t in (*done, *pruned)]
            for dimension in plan.space
        },
    )


def draw_slices(trials: Sequence[FrozenTrial], plan: Plan) -> Plot:
    """Value against each setting by itself."""
    done, pruned = _finished(trials), _pruned(trials)
    columns = min(_COLUMNS, len(plan.space))
    rows = -(-len(plan.space) // columns)
    numbers: dict[str, list[Any]] = {"setting": [], "trial": [], "at": [], "value": []}
    with new_figure(_WIDE, 1.9 * rows + 0.5, rows, columns) as (figure, panels):
        flat = np.ravel(panels)
        for axes, dimension in zip(flat, plan.space, strict=False):
            for group, look in ((pruned, {"marker": "x", "c": GREY, "alpha": 0.5}), (done, {})):
                shown = [trial for trial in group if dimension.key in trial.params]
                x = [_height(dimension, trial) for trial in shown]
                y = [reached(trial, plan) for trial in shown]
                late = {"c": [t.number for t in shown], "cmap": "viridis_r", "vmin": 0,
                        "vmax": len(trials)}  # fmt: skip
                axes.scatter(x, y, s=10, lw=0.8, **(look or late))
                numbers["setting"] += [dimension.key] * len(shown)
                numbers["trial"] += [trial.number for trial in shown]
                numbers["at"] += [trial.params[dimension.key] for trial in shown]
                numbers["value"] += y
            ticks = _ticks(dimension)
            turned = 30 if any(len(label) > 5 for _, label in ticks) else 0
            axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks],
                            rotation=turned, fontsize=6)  # fmt: skip
            axes.set(xlim=(-0.08, 1.08), xlabel=dimension.key)
        for axes in flat[len(plan.space) :]:
            axes.set_visible(False)
        figure.supylabel(f"{objective_title(plan)} (validation)", fontsize=8)
    return Plot(
        "slices",
        "Value against each setting",
        "Finished trials, from the first in yellow to the last in violet"
        f"{'; crosses: the best that pruned trials reached' * bool(pruned)}. Trials that crowd at "
        "the end of an axis say that the range should be wider.",
        figure,
        numbers,
    )


def draw_importance(found: Importance, plan: Plan) -> Plot:
    """Share of each key in the variance of the objective."""
    names = [*reversed(found.shares)]
    shares = [found.shares[name] for name in names]
    low, high = ([found.ranges[name][end] for name in names] for end in (0, 1))
    with new_figure(_WIDE, 0.8 + 0.26 * len(names)) as (_, axes):
        spread = np.abs(np.array([low, high]) - shares)
        axes.barh(names, shares, color=BLUE, height=0.6)
        axes.errorbar(shares, names, xerr=spread, fmt="none", ecolor="black", capsize=2, lw=0.8)
        axes.set(xlim=(0, max(high) * 1.05))
        axes.set_xlabel(f"Share in the variance of {objective_title(plan)} (fANOVA)")
        figure = axes.figure
    return Plot(
        "importance",
        "Importance of the settings",
        f"How much of the variance over the whole space a setting makes up by itself and with "
        f"others. Bars: lowest and highest of {DRAWS} draws of the trials, each with its own "
        "forest. Settings that only some trials have are left out.",
        figure,
        {"setting": names, "share": shares, "low": low, "high": high},
    )


def _finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def _pruned(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]


def _height(dimension: Dimension, trial: FrozenTrial) -> float:
    """Place of a trial on the axis of a setting, from 0 to 1; below it if it has none."""
    if dimension.key not in trial.params:
        return _UNSET
    return _place(dimension, trial.params[dimension.key])


def _place(dimension: Dimension, value: Any) -> float:
    if dimension.choices:
        names = [dimension.stored(choice) for choice in dimension.choices]
        return (names.index(value) + 0.5) / len(names)
    low, high, at = (math.log(v) if dimension.log else v for v in
                     (dimension.low, dimension.high, value))  # fmt: skip
    return float((at - low) / (high - low))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """Places on the axis of a setting, and what stands there."""
    if dimension.choices:
        names = [dimension.stored(choice) for choice in dimension.choices]
        return [(_place(dimension, name), _short(str(name))) for name in names]
    low, high = dimension.low, dimension.high
    marks: NDArray[np.floating]
    if dimension.log:
        tens = 10.0 ** np.arange(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        marks = tens if tens.size > 1 else np.geomspace(low, high, 3)
    else:
        whole = isinstance(low, int)
        marks = np.asarray(MaxNLocator(4, integer=whole).tick_values(low, high))
        marks = marks[(marks >= low) & (marks <= high)]
    return [(_place(dimension, mark), _number(mark)) for mark in marks]


def _rule(axes: Any, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw one of parallel axes."""
    axes.plot([x, x], [0, 1], color="black", lw=0.8, zorder=3)
    box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75}
    for y, label in ticks:
        axes.plot([x - 0.03, x], [y, y], color="black", lw=0.8, zorder=3)
        axes.text(x - 0.05, y, label, ha="right", va="center", fontsize=6, bbox=box, zorder=4)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
