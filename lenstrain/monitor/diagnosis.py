"""What the records of a run mean, in words: each finding with its evidence and what to do. Pure.

A finding needs enough records; the rules compare medians, so that the noise of single steps does
not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from lensprep.errors import count_text
from lenstrain.config import WHERE_RESOLVED
from lenstrain.evaluation.metrics import higher_is_better, watched

Severity = Literal["good", "info", "warn", "bad"]
ORDER: tuple[Severity, ...] = ("bad", "warn", "info", "good")
Record = dict[str, Any]

RECENT = 10
"""Intervals that say how a run is doing now."""
FEWEST = 3
"""Intervals below which a share is not judged."""
WAIT_SHARE, WAIT_SHARE_BAD = 0.10, 0.30
"""Share of the time spent waiting for data from which a run starves."""
CLIP_SHARE = 0.10
"""Share of clipped steps, after the warm-up, from which clipping sets the learning rate."""
SKIP_SHARE = 0.02
"""Share of updates skipped for a gradient that was not finite."""
RISE = 1.5
"""Factor over its lowest level from which the training loss diverges."""
OVERFIT_RISE = 1.05
"""Factor over its minimum from which the validation NLL has turned."""
FLAT = 0.02
"""Relative change of the training loss over three epochs below which it is flat."""
RESTING_RATE = 0.10
"""Share of the peak learning rate below which a flat run has come to rest."""
CHANCE_AUROC = 0.55
"""AUROC below which a finder of three epochs has learnt nothing."""
LIGHT_SHARE = 0.5
"""Share of the completeness that look-alikes reach at the same threshold, from which a finder sees
light. Without counterfactuals in training it was about 0.8; with them 0.35, and 0.15 to 0.25 in
good finders. The AUROC within pairs does not tell these apart: it was 0.6 to 0.7 without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What a run has recorded, and the keys of its configuration that the rules need."""

    intervals: Sequence[Record] = field(default_factory=tuple)
    """Lines of kind ``interval``."""
    epochs: Sequence[Record] = field(default_factory=tuple)
    """Lines of kind ``epoch``."""
    monitor: str = "auroc"
    peak_lr: float = 3e-4
    warmup_steps: float = 0.0
    clip_norm: float = 1.0
    counterfactual_share: float = 0.0
    nonfinite: bool = False
    """Whether the run ended because its loss was not finite."""
    over: bool = False
    """Whether the run has ended, so that there is nothing left to wait for."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that can be said about a run."""

    name: str
    severity: Severity
    evidence: str
    action: str


def diagnose(history: History) -> list[Diagnosis]:
    """Everything that can be said about a run, the worst first; never empty.

    Returns
    -------
    list of Diagnosis
        Of ``diverges``, ``learns nothing``, ``sees light``, ``overfits``, ``plateau``,
        ``converged``, ``starved``, ``clipped``, ``skipped updates``, ``converges``, ``too early``,
        ``unclear``.
    """
    rules = (diverges, learns_nothing, sees_light, overfits, plateau, starved, clipped, skipped)
    found = [finding for rule in rules if (finding := rule(history)) is not None]
    about_learning = {"diverges", "learns nothing", "overfits", "plateau", "converged"}
    if not about_learning & {finding.name for finding in found}:
        found.append(converges(history) or _nothing_yet(history))
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


def diverges(history: History) -> Diagnosis | None:
    """The training loss is not finite, or well above where it has been, beyond its noise."""
    if history.nonfinite or any(r.get("loss", 0) is None for r in history.intervals):
        return Diagnosis(
            "diverges",
            "bad",
            "The loss became NaN or infinite.",
            "nonfinite.json lists the batch: check it with `lensprep verify`. If its pixels are "
            "finite, lower optim.lr by 3 or lengthen optim.warmup_epochs, and start again.",
        )
    losses = values(history.intervals, "loss")
    width = max(5, len(losses) // 20)
    if len(losses) < 2 * width:
        return None
    levels = [statistics.median(losses[i : i + width]) for i in range(len(losses) - width + 1)]
    low, now = min(levels), levels[-1]
    noise = statistics.median(abs(b - a) for a, b in pairwise(losses))
    if now <= RISE * low or now - low <= 3 * noise:
        return None
    where = levels.index(low)
    step = [r for r in history.intervals if _number(r.get("loss"))][where + width // 2]["step"]
    return Diagnosis(
        "diverges",
        "bad",
        f"The training loss rose from {low:.4g} around step {step} to {now:.4g}.",
        f"Lower optim.lr by 3 (peak {history.peak_lr:g}), or lengthen optim.warmup_epochs; "
        "best.pt holds the best epoch so far.",
    )


def learns_nothing(history: History) -> Diagnosis | None:
    """After three epochs the finder ranks no better than chance."""
    auroc = values(history.epochs, "auroc")
    if len(auroc) < 3 or max(auroc) >= CHANCE_AUROC:
        return None
    return Diagnosis(
        "learns nothing",
        "bad",
        f"The best validation AUROC of {len(auroc)} epochs is {max(auroc):.3f}; chance is 0.5.",
        "Look at stamps and labels with `lensprep inspect --montage`; then try optim.lr 3 times "
        "lower and 3 times higher on data.limit=2000.",
    )


def sees_light(history: History) -> Diagnosis | None:
    """Where lenses pass, the same light without lensing passes nearly as often."""
    names = ("counterfactual_pass", "tpr_at_fpr")
    judged = [r for r in history.epochs if all(_number(r.get(name)) for name in names)]
    rates = [tuple(float(record[name]) for name in names) for record in judged[-3:]]
    if len(rates) < 3 or any(found <= 0 or light < LIGHT_SHARE * found for light, found in rates):
        return None
    light, found = rates[-1]
    only = f'data.where="{WHERE_RESOLVED}"'
    return Diagnosis(
        "sees light",
        "warn",
        f"At the threshold of tpr_at_fpr {100 * found:.0f} % of the lenses pass, and "
        f"{100 * light:.0f} % of the counterfactuals that are no lenses, {light / found:.2f} times "
        "as many: this finder sees extra light, not lensing.",
        f"Learn only from lenses whose shape can be seen ({only}); if it does, train longer or "
        "with a larger data.counterfactual_share."
        if history.counterfactual_share
        else f"Set data.counterfactual_share=0.9 and {only}, so that only lenses whose shape can "
        "be seen are learnt.",
    )


def overfits(history: History) -> Diagnosis | None:
    """The validation NLL has turned up while the training loss keeps falling.

    Not judged with counterfactuals: these change the share of lenses that is trained on, and the
    NLL of ordinary rows then rises with every lens that turns out to be light alone.
    """
    if history.counterfactual_share:
        return None
    epochs = [r for r in history.epochs if _number(r.get("nll")) and _number(r.get("train_loss"))]
    if len(epochs) < 4:
        return None
    nll = [float(r["nll"]) for r in epochs]
    turn = nll.index(min(nll))
    now = statistics.fmean(nll[-2:])
    falls = epochs[-1]["train_loss"] < 0.98 * epochs[turn]["train_loss"]
    if len(nll) - 1 - turn < 2 or now < OVERFIT_RISE * nll[turn] or not falls:
        return None
    evidence = (
        f"The validation NLL rose from {nll[turn]:.4f} in epoch {epochs[turn]['epoch']} to "
        f"{now:.4f}, while the training loss fell from {epochs[turn]['train_loss']:.4f} to "
        f"{epochs[-1]['train_loss']:.4f}."
    )
    if since_best(history) < 2 and history.monitor != "nll":
        action = (
            f"{history.monitor} still gains, so the ranking is sound but the probabilities become "
            "overconfident: calibrate (`lenstrain evaluate --calibrate-on`), or set "
            "train.monitor=nll."
        )
    else:
        action = (
            "Stop: best.pt holds the best epoch. For the next run more data or augmentation "
            "(data.shift_px), a larger optim.weight_decay, model.dropout, or a smaller model."
        )
    return Diagnosis("overfits", "warn", evidence, action)


def plateau(history: History) -> Diagnosis | None:
    """Neither the monitored metric nor the training loss moves: wanted at the end of the cosine."""
    train = values(history.epochs, "train_loss")
    waited = since_best(history)
    if len(train) < 5 or waited < 3 or train[-4] <= 0:
        return None
    change = (train[-4] - train[-1]) / train[-4]
    if abs(change) >= FLAT:
        return None
    rates = values(history.intervals, "lr")
    evidence = (
        f"{history.monitor} has not gained for {waited} epochs, and the training loss changed by "
        f"{100 * abs(change):.1f} % over the last three."
    )
    if rates and rates[-1] <= RESTING_RATE * history.peak_lr:
        return Diagnosis(
            "converged",
            "good",
            f"{evidence} The learning rate is down to {rates[-1]:.2g}.",
            "Nothing: evaluate best.pt.",
        )
    return Diagnosis(
        "plateau",
        "warn",
        evidence,
        "A lower optim.lr or fewer train.epochs brings the decay sooner; a larger model.arch or "
        "more data if the training loss is high; `lenstrain sweep` to search.",
    )


def starved(history: History) -> Diagnosis | None:
    """Much of the time goes into waiting for data."""
    # The first interval waits for the first batch, whatever the disk.
    shares = values(history.intervals[1:], "data_wait_share")[-RECENT:]
    if len(shares) < FEWEST or (share := statistics.median(shares)) <= WAIT_SHARE:
        return None
    return Diagnosis(
        "starved",
        "bad" if share > WAIT_SHARE_BAD else "warn",
        f"{100 * share:.0f} % of the time of the last {len(shares)} intervals was spent waiting "
        "for data.",
        "Put the dataset on a local NVMe disk or set data.cache_dir; data.shuffle=block for an "
        "object store; `lenstrain bench` says what this machine can read.",
    )


def clipped(history: History) -> Diagnosis | None:
    """Gradients are clipped so often that the limit acts as a learning rate."""
    after = [r for r in history.intervals if r["step"] > history.warmup_steps]
    shares = values(after, "clipped_share")[-RECENT:]
    if history.clip_norm <= 0 or len(shares) < FEWEST:
        return None
    share = statistics.fmean(shares)
    if share <= CLIP_SHARE:
        return None
    seen = ""
    if norms := values(after, "grad_norm"):
        seen = f" The mean norm is {norms[-1]:.3g}, the limit {history.clip_norm:g}."
    return Diagnosis(
        "clipped",
        "warn",
        f"{100 * share:.0f} % of the steps since the warm-up had their gradient clipped "
        f"(last {len(shares)} intervals).{seen}",
        "Above 10 % the limit acts as a learning rate: raise optim.clip_norm to about twice the "
        "usual norm, or lower optim.lr.",
    )


def skipped(history: History) -> Diagnosis | None:
    """Updates are left out because gradients are not finite."""
    steps = [float(r["step"]) for r in history.intervals]
    counts = [float(r.get("skipped_updates") or 0) for r in history.intervals]
    if len(steps) < FEWEST + 1:
        return None
    share = sum(counts[1:]) / max(steps[-1] - steps[0], 1)
    if share <= SKIP_SHARE:
        return None
    return Diagnosis(
        "skipped updates",
        "warn",
        f"{100 * share:.1f} % of the updates were skipped: their gradient was not finite.",
        "Set train.amp=bf16 where the GPU has it, or off; else lower optim.lr.",
    )


def converges(history: History) -> Diagnosis | None:
    """The training loss falls, and the metric has gained of late."""
    train = values(history.epochs, "train_loss")
    if len(train) >= 2:
        recent = train[-4:]
        waited = since_best(history)
        # A metric at its ceiling cannot gain: then the validation NLL speaks for it.
        gains = waited <= 2 or since_best(replace(history, monitor="nll")) <= 2
        if recent[-1] >= 0.995 * recent[0] or not gains:
            return None
        best = values(history.epochs, history.monitor)[-1 - waited]
        return Diagnosis(
            "converges",
            "good",
            f"The training loss fell from {recent[0]:.4f} to {recent[-1]:.4f} over the last "
            f"{count_text(len(recent), 'epoch')}; best {history.monitor} {best:.4f}, "
            + ("in the last one." if waited == 0 else f"{count_text(waited, 'epoch')} ago.")
            + _best_before(history),
            "It is over: evaluate best.pt; more train.epochs may gain more."
            if history.over
            else "Let it run.",
        )
    losses = values(history.intervals, "loss")
    if len(losses) < 6:
        return None
    third = len(losses) // 3
    first, last = statistics.median(losses[:third]), statistics.median(losses[-third:])
    if last >= 0.98 * first:
        return None
    return Diagnosis(
        "converges",
        "good",
        f"The training loss fell from {first:.4f} to {last:.4f} within the first epochs.",
        "Let it run; the first validations will say more.",
    )


def _best_before(history: History) -> str:
    """Which other metrics were better in an earlier epoch, as a sentence to append."""
    found = []
    for name in watched():
        course, waited = values(history.epochs, name), since_best(replace(history, monitor=name))
        if name != history.monitor and waited and len(course) == len(history.epochs):
            found.append(f"{name} in epoch {history.epochs[-1 - waited]['epoch']}")
    return f" Best before: {', '.join(found)}." if found else ""


def _nothing_yet(history: History) -> Diagnosis:
    if len(history.epochs) < 4:
        return Diagnosis(
            "too early",
            "info",
            f"Recorded: {count_text(len(history.intervals), 'interval')} and "
            f"{count_text(len(history.epochs), 'epoch')}.",
            "With a few epochs there is something to say; train.log_every sets how often a line is "
            "written.",
        )
    waited, train = since_best(history), values(history.epochs, "train_loss")[-4:]
    if not train:
        return Diagnosis("unclear", "info", "No epoch has a training loss.", "Look at the log.")
    return Diagnosis(
        "unclear",
        "info",
        f"{history.monitor} last gained {count_text(waited, 'epoch')} ago; the training loss went "
        f"from {train[0]:.4f} to {train[-1]:.4f} over the last {len(train)} epochs.",
        "Let it run until the learning rate has fallen, or until train.patience ends it.",
    )


def since_best(history: History) -> int:
    """Epochs since the monitored metric was best; 0 in the best one or if there is none."""
    found = values(history.epochs, history.monitor)
    if not found:
        return 0
    best = max(found) if higher_is_better(history.monitor) else min(found)
    return len(found) - 1 - found.index(best)


def values(records: Sequence[Record], name: str) -> list[float]:
    """Numbers of one name, in order, without what is null."""
    return [float(record[name]) for record in records if _number(record.get(name))]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
