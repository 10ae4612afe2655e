"""The checklist: every item, its group, its weight, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lensprep.checks.finding import Finding, Severity
from lensprep.dataset.strictjson import plain
from lensprep.errors import ProjectError
from lenstrain.audit import (
    copies,
    data,
    figures,
    hosts,
    labels,
    leaks,
    lensing,
    loader,
    outside,
    realism,
    rescore,
    run,
    science,
    scores,
    sky,
    trainings,
)
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import Outcome
from lenstrain.pages.page import fill
from lenstrain.probes.judge import RULES
from lenstrain.probes.words import MEANINGS

Check = Callable[[Evidence, AuditConfig], Outcome]


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the checklist, and all that page and documentation say of it.

    Texts may hold Markdown's backticks.
    """

    name: str
    group: str
    severity: Severity
    check: Check
    title: str = field(kw_only=True)
    measures: str = field(kw_only=True)
    """What is looked at; in braces thresholds as `lenstrain.pages.page.fill` writes them."""
    why: str = field(kw_only=True)
    """Why it matters."""
    rule: str = field(default="", kw_only=True)
    """What passes, as `measures`: the end of "Passes if". Empty if there is nothing to pass."""
    remedy: str = field(default="", kw_only=True)
    """What to do if it fails; RUN and DATASET stand for what was audited."""
    figure: str = field(default="", kw_only=True)
    """What shows it: ``report`` or ``probe``, and the id there after a #."""
    docs: str = field(default="", kw_only=True)
    """Section of docs/how-to/audit.md that says more, if one does."""
    publish: bool = field(default=False, kw_only=True)
    """Whether it blocks only a publication; for internal use it warns."""

    def filled(self, text: str, config: AuditConfig) -> str:
        """One of the texts, with the thresholds of this audit."""
        return fill(text, data=config.data, run=config.run, scores=config.scores,
                    science=config.science, limits=config.science)  # fmt: skip


_SPLIT: Final = "Split by galaxy or by region of the sky, not by row, and convert again."
_SCORE: Final = (
    "`lenstrain infer RUN/checkpoints/best.pt DATASET --split test --out RUN/test.parquet`"
)
_INJECTIONS, _REAL = "what-injections-explain", "real-rows-of-the-dataset"
_LIMITS = "what-each-item-can-and-cannot-see"

# fmt: off
CHECKLIST: Final = (
    Item("schema", "data", "blocker", data.check_schema,
        title="Columns of the sidecars",
        measures="columns and types of every sidecar",
        rule="all are equal, and none that is needed is missing",
        why="Every other item reads these columns; where another version or source wrote a shard, "
        "it would read them wrongly.",
        remedy="Convert the source again, whole, with one version.",
    ),
    Item("reject_rate", "data", "blocker", data.check_reject_rate,
        title="Rows that were rejected",
        measures="the conversion's counts, by reason and class, without counterfactuals",
        rule="at most {data.max_reject_rate!p} of the rows are rejected, and of one class at most "
        "{data.max_class_gap!p} more than of the other; above {data.blocking_reject_rate!p} it "
        "blocks",
        why="What is rejected is neither trained nor tested on. If one class loses more, the rest "
        "was selected by label.",
        remedy="Look at the reasons (rejects.parquet of the dataset, `lensprep check` of the "
        "source), mend the source, and convert again.",
    ),
    Item("label_consistency", "data", "blocker", data.check_label_consistency,
        title="Labels against their sources",
        measures="label against lens_model, is_control, theta_e_arcsec",
        rule="no label contradicts them",
        why="A label that contradicts the parameters of its own injection is wrong, and the "
        "finder learns it.",
        remedy="Mend the labels in the source, and convert again.",
    ),
    Item("both_classes", "data", "blocker", data.check_both_classes,
        title="Both classes in every split",
        measures="rows of each class in each split",
        rule="train, val and test have lenses and non-lenses, as many as the manifest states",
        why="With one class nothing can be trained, chosen or measured on a split.",
        remedy="Give every split both classes in the source, and convert again.",
    ),
    Item("split_disjoint", "data", "blocker", data.check_split_disjoint,
        title="No sky in two splits",
        measures="regions and bricks in two splits; nearest stamps of two splits",
        rule="no region or brick is in two splits, and no stamp is nearer to one of another split "
        "than data.min_separation_arcsec, by default the diagonal of a stamp (23.7″ for 64 pixels "
        "of 0.262″)",
        why="Stamps that overlap share pixels: the finder is tested on what it was trained on.",
        remedy=_SPLIT,
    ),
    Item("duplicates", "data", "blocker", data.check_duplicates,
        title="Equal images",
        measures="equal pixels in two splits or with two labels; repeated keys",
        rule="there are none; distinct images are reported",
        why="An image in train and in test flatters every figure, and one with both labels "
        "teaches nothing.",
        remedy=_SPLIT,
    ),
    Item("near_duplicates", "data", "blocker", copies.check_near_duplicates,
        title="Nearly equal images",
        measures="correlation of the sky's noise between stamps of two splits, in the 8 rotations "
        "and flips",
        rule="no correlation of two stamps reaches {data.copy_correlation:g}",
        why="A stamp that was copied with a little noise, turned or flipped is still known from "
        "training. Unrelated stamps reach 0.1.",
        remedy=_SPLIT,
        docs=_LIMITS,
    ),
    Item("split_fractions", "data", "warn", data.check_split_fractions,
        title="Shares of the splits",
        measures="shares of rows against the declared ones",
        rule="each share lies within {data.fraction_tolerance!p} of all rows from what was "
        "declared",
        why="Upstream believed in 80, 10 and 10%, and had 26, 39 and 35%: figures then rest on "
        "other rows than one thinks.",
        remedy="Split anew, or declare the shares that you mean, for example with "
        "`--fractions train=0.8,val=0.1,test=0.1`.",
    ),
    Item("pairing", "data", "warn", data.check_pairing,
        title="Pairs of lens and galaxy",
        measures="galaxies with both labels against the declared mode",
        rule="at most {data.pairing_tolerance!p} of the lens galaxies are not as declared",
        why="Pairs test causally and reward extra flux; without them hosts may differ. Which of "
        "both a dataset is must be known.",
        remedy="Declare what it is, with `--set data.pairing=paired` or `unpaired`, or mend the "
        "pairs of the source.",
    ),
    Item("forbidden_inputs", "data", "blocker", data.check_forbidden_inputs,
        title="What the network is given",
        measures="input channels of the network, further inputs",
        rule="these are the pixels of the dataset's bands alone",
        why="Columns of an injection reveal the label, and no galaxy in the sky has them.",
        remedy="Train a network that sees the pixels alone.",
    ),
    Item("metadata_probe", "data", "blocker", leaks.check_metadata_probe,
        title="Labels from metadata",
        measures="logistic regression on allowed metadata, cross-validated over regions",
        rule="its AUROC is not surely above {data.metadata_upper:g}; it blocks if the lower end "
        "of the interval is above {data.metadata_lower:g}",
        why="If what is known of an unlabelled stamp tells the classes apart, they were selected "
        "differently, and a finder may have learnt that.",
        remedy="Select lenses and non-lenses alike in the columns named, and convert again.",
    ),
    Item("normalization", "data", "blocker", sky.check_normalization,
        title="Pixels as conversion measured them",
        measures="median and scale of the stored pixels, in flux again, against the sidecar's",
        rule="both lie within {data.normalization_tolerance!p} of the scale, for every stamp",
        why="Pixels that are not normalised as the manifest states are not what the network is "
        "used on.",
        remedy="`lensprep verify DATASET` says whether a file was changed. Convert again.",
    ),
    Item("norm_stat_probe", "data", "warn", hosts.check_norm_stat_probe,
        title="Labels from the normalisation",
        measures="medians, scales, clipped fractions of lenses against those of non-lenses with "
        "arc flux added",
        rule="the lower end of the AUROC is at most {data.norm_stat_lower:g}",
        why="Arcs change these statistics, so their light is added to the non-lenses first. What "
        "is left comes from other hosts, or from another way of making them.",
        remedy="Make both classes by the same code from hosts that were selected alike, and "
        "convert again.",
        docs=_INJECTIONS,
    ),
    Item("sky_probe", "data", "blocker", sky.check_sky_probe,
        title="Labels from the sky",
        measures="level and scatter of the sky beyond 5.24 arcsec, in flux, less the mean of its "
        "brick",
        rule="the AUROC is not surely above {data.sky_upper:g}; it blocks if the lower end of the "
        "interval is above {data.sky_lower:g}",
        why="The sky far from a lens knows nothing of it. A difference was made when stamps were "
        "calibrated, subtracted or scaled.",
        remedy="Calibrate and subtract both classes by the same code, and convert again.",
        docs=_LIMITS,
    ),
    Item("loader_coverage", "loader", "blocker", loader.check_loader_coverage,
        title="Every row once an epoch",
        measures="an epoch on {run.world_sizes!l} processes",
        rule="every row comes exactly once, in equal steps on every process",
        why="Rows that are lost or repeated count wrongly; with unequal steps processes wait for "
        "ever.",
        remedy="Convert the dataset again; if that does not help, the loader has a fault: report "
        "it with audit.json.",
    ),
    Item("permuted_labels", "run", "blocker", trainings.check_permuted_labels,
        title="Random labels stay unknown",
        measures="the network trained on random labels, one for each image (the probe of this name "
        "fits a logistic regression)",
        rule="the AUROC on held-out images lies within {run.standard_errors:g} standard errors of "
        "0.5",
        why="Random labels cannot be known of new images. If they are, train and val share "
        "images, or something but the pixels reveals a label.",
        remedy="Look at `duplicates` and `near_duplicates`. " + _SPLIT,
    ),
    Item("overfit_64", "run", "blocker", trainings.check_overfit_64,
        title="64 stamps by heart",
        measures="loss on 64 stamps",
        rule="it falls below {run.overfit_loss:g} within {run.overfit_steps} steps",
        why="A working network and optimiser learn 64 stamps by heart.",
        remedy="Look at the network, the loss and the labels: one of them is broken.",
    ),
    Item("resume", "run", "blocker", trainings.check_resume,
        title="An interruption changes nothing",
        measures="uninterrupted against interrupted and resumed",
        rule="both end in the same bits",
        why="Otherwise a run on a machine that may be taken away cannot be repeated.",
        remedy="The trainer has a fault, or the device adds in no fixed order (`--set "
        "run.device=cpu`): report it with audit.json.",
    ),
    Item("ddp_eval", "run", "blocker", trainings.check_ddp_eval,
        title="Scores on two processes",
        measures="logits on one and on two processes",
        rule="the same rows are scored, equal to rounding",
        why="Rows that are repeated to fill a batch, and averages over a batch, would make scores "
        "depend on the machine.",
        remedy="Score on one process, and report it with audit.json.",
    ),
    Item("seeds", "run", "warn", run.check_seeds,
        title="Other seeds",
        measures="completeness at FPR {scores.seed_fpr:g} of three runs or more",
        rule="half its range over {run.min_seeds} seeds or more lies within the half-width of its "
        "interval",
        why="Two runs of one configuration differ by more than the interval of one says.",
        remedy="Quote the range over seeds with every figure, or use an ensemble of these runs.",
    ),
    Item("provenance", "run", "blocker", run.check_provenance,
        title="Where run and threshold come from",
        measures="states, seed, data digest, commit, versions; config.toml against the "
        "checkpoint's; the split that the frozen threshold came from",
        rule="all is recorded and belongs together, the code is committed, and that split was "
        "neither trained on nor judged on",
        why="What cannot be repeated cannot be checked, and a threshold that was chosen on the "
        "judged rows flatters them.",
        remedy="Evaluate with `--calibrate-on` another split; what the run itself lacks, only "
        "training again mends.",
    ),
    Item("test_once", "run", "blocker", run.check_test_once,
        title="Test opened once",
        measures="`test_ledger.jsonl`, which `infer` writes",
        rule="there is one way of scoring test (weights of all members, --tta), however often",
        why="Choosing among several scorings of test uses the split up.",
        remedy="State all scorings, or judge on sky that was never scored.",
    ),
    Item("full_eval", "scores", "blocker", scores.check_full_eval,
        title="Every row scored",
        measures="rows scored against rows of the split; labels, regions, hashes and axes against "
        "the sidecar's; dataset and normalisation that the table names",
        rule="these are all rows and no others, unchanged, of this dataset",
        why="Rows that were left out may be the hard ones, and changed labels change every figure.",
        remedy=f"Score the whole split again: {_SCORE}.",
    ),
    Item("rescored", "scores", "blocker", rescore.check_rescored,
        title="Scores from the pixels",
        measures="logits of {scores.rescored_rows} rows, scored again on the CPU",
        rule="all are equal to rounding",
        why="Scores that the checkpoint does not give on these pixels are another model's, or "
        "were changed.",
        remedy=f"Score again: {_SCORE}.",
        docs=_LIMITS,
    ),
    Item("score_resolution", "scores", "blocker", scores.check_score_resolution,
        title="Ties among the scores",
        measures="largest block of equal scores among distinct images",
        rule="at most {scores.max_tie_share!p} share a score, and none is tied at a threshold",
        why="A saturated sigmoid gives many stamps one score, and no threshold can separate them.",
        remedy=f"Rank on float32 logits: {_SCORE}.",
    ),
    Item("roc_sanity", "scores", "blocker", scores.check_roc_sanity,
        title="AUROC and rates agree",
        measures="reported rates and AUROC against each other and the scores",
        rule="they agree exactly",
        why="An AUROC that its own curve excludes was not measured on these scores.",
        remedy="Evaluate these scores again.",
        figure="report#roc",
    ),
    Item("report_figures", "scores", "blocker", figures.check_report_figures,
        title="Every number recomputed",
        measures="every number of metrics.json and completeness.parquet, evaluated again",
        rule="all are equal to 1e-7 of their value",
        why="A report that does not follow from the scores was edited, or made from others.",
        remedy="Evaluate again, with this version.",
        figure="report", docs=_LIMITS,
    ),
    Item("label_noise", "scores", "warn", labels.check_label_noise,
        title="Labels that the scores contradict",
        measures="non-lenses above the score that 10% of the lenses reach, over the lenses' rate; "
        "bright arcs below the median non-lens",
        rule="the first is surely at most {scores.max_top_ratio!p} and the second "
        "{scores.max_bright_missed!p}, or what a finder of this AUROC gives; it blocks if the "
        "ranking is no better than chance",
        why="Swapped labels show where a finder is sure: as non-lenses among the best, and as "
        "bright arcs among the worst.",
        remedy="Look at the stamps named, correct their labels, and train again.",
        figure="report#scores", docs=_LIMITS,
    ),
    Item("fpr_support", "scores", "blocker", scores.check_fpr_support,
        title="Enough non-lenses for the claimed rates",
        measures="distinct non-lenses of the split the threshold came from, over the design "
        "effect of its regions, against ln δ / ln(1−α)",
        rule="they are enough for every claimed rate ({scores.claimed_fprs!l})",
        why="A false-positive rate of 0.001 takes thousands of independent non-lenses to be "
        "guaranteed; with fewer the threshold is luck.",
        remedy="Choose the threshold on a split with more non-lenses, or claim only what these "
        "support, for example with `--set scores.claimed_fprs=[0.01]`.",
        figure="report#roc_log",
    ),
    Item("region_bootstrap", "scores", "warn", scores.check_region_bootstrap,
        title="Regions and draws",
        measures="regions and draws behind the intervals",
        rule="there are {scores.min_regions} and {scores.min_resamples:,} or more",
        why="With few regions intervals are too narrow, and with few draws their ends are noisy.",
        remedy="Test on more regions of the sky, and evaluate with `--set resamples=1000`.",
    ),
    Item("calibration", "scores", "warn", scores.check_calibration,
        title="Calibrated probabilities",
        measures="root mean square calibration error after scaling, debiased; its lower end",
        rule="it is at most {scores.max_ece!p}, and scaling keeps the ranks",
        why="Purities and expected numbers are sums of probabilities, which must be frequencies.",
        remedy="Do not quote the probabilities, or calibrate on more rows like these.",
        figure="report#reliability",
    ),
    Item("completeness_cells", "science", "warn", science.check_completeness_cells,
        title="Lenses in each cell of completeness",
        measures="lenses in each cell of one axis; completeness along `arc_snr`",
        rule="{science.min_cell} lenses or more are in {science.min_cell_share!p} of the cells, "
        "and completeness rises",
        why="Completeness from few lenses says little, and one that does not rise with brighter "
        "arcs is not about arcs.",
        remedy="Test on more lenses, or take wider bins; if completeness does not rise, look at it "
        "in the report: the finder may not see arcs.",
        figure="report#completeness_arc_snr",
    ),
    Item("unresolved_share", "science", "info", science.check_unresolved_share,
        title="Lenses that the seeing hides",
        measures="lenses of all splits with theta_E below {science.unresolved_below:g} of the PSF "
        "FWHM",
        rule="they are at most {science.max_unresolved!p}",
        why="Such lenses can be found by extra flux alone, not by shape.",
        remedy="Report the completeness of resolved and unresolved lenses apart.",
        figure="report#completeness_theta_e_over_psf", docs=_INJECTIONS,
    ),
    Item("null_injection", "science", "blocker", science.check_null_injection,
        title="Nothing added",
        measures="zero flux through every step of an injection",
        rule=RULES["null_injection"],
        why=MEANINGS["null_injection"],
        remedy="The code that adds light has a fault: report it with probe.json.",
        docs="the-probes",
    ),
    Item("flux_matched_null", "science", "blocker", science.check_flux_matched,
        title="Unlensed source of equal flux",
        measures="non-lenses with an unlensed source of an arc's flux",
        rule=RULES["flux_matched_null"],
        why=MEANINGS["flux_matched_null"],
        remedy="Train with counterfactuals: `lensprep counterfactual`, then "
        "data.counterfactual_share.",
        figure="probe#injections", docs=_INJECTIONS,
        publish=True,
    ),
    Item("counterfactuals", "science", "warn", lensing.check_counterfactuals,
        title="Counterfactuals that pass",
        measures="counterfactuals of each kind that pass at the frozen threshold",
        rule="each passes at most at {science.counterfactual_factor:g} times the upper limit of "
        "the false-positive rate; it blocks a publication if unlensed or magnified light passes",
        why="The light of a lens on the host of a non-lens, without its lensing: a finder "
        "that lets it pass sees light, not lensing.",
        remedy=f"{lensing.REMEDY}.",
        figure="report#counterfactuals", docs="counterfactuals",
    ),
    Item("pairs", "science", "warn", lensing.check_pairs,
        title="Lensed against the same light",
        measures="well resolved lenses (θ_E ≥ {science.resolved_arcsec:g}″ or θ_E / PSF ≥ "
        "{science.resolved_ratio:g}) that score higher than the same light on the same "
        "host without lensing; the others are reported, also by their AUROC across families",
        rule="{science.pairs_won!p} do, against each kind",
        why="Host and flux are the same on both sides, so only shape can rank a pair; 50% is "
        "chance.",
        remedy=f"{lensing.REMEDY}.",
        figure="report#pairs_theta_e_over_psf", docs="counterfactuals",
    ),
    Item("arc_removal", "science", "warn", science.check_arc_removal,
        title="Arcs removed",
        measures="mean score (sigmoid of the logit) of bright-arc lenses without their arcs",
        rule=RULES["arc_removal"],
        why=MEANINGS["arc_removal"],
        remedy="Train with counterfactuals, or with the lenses' own galaxies as non-lenses.",
        docs="the-probes",
    ),
    Item("core_mask", "science", "warn", science.check_core_mask,
        title="Core masked",
        measures="mean score (sigmoid of the logit) of bright-arc lenses without host and arcs",
        rule=RULES["core_mask"],
        why=MEANINGS["core_mask"],
        remedy="Look at `norm_stat_probe`, `sky_probe` and the probes' figure: what is beyond the "
        "core differs between the classes.",
        figure="probe#views", docs="the-probes",
    ),
    Item("annulus_only", "science", "warn", science.check_annulus_only,
        title="Sky alone",
        measures="mean score (sigmoid of the logit) of bright-arc lenses on sky alone; the "
        "finder's AUROC on it",
        rule=RULES["annulus_only"],
        why=MEANINGS["annulus_only"],
        remedy="Look at `sky_probe` and `norm_stat_probe`: noise or normalisation differs between "
        "the classes.",
        figure="probe#views", docs="the-probes",
    ),
    Item("core_only", "science", "warn", science.check_core_only,
        title="Core profile, logistic regression",
        measures="logistic regression on the core's profile",
        why=MEANINGS["core_only"],
        docs="the-probes",
    ),
    Item("baseline", "science", "info", science.check_baseline,
        title="The network against light profiles",
        measures="AUROC and completeness of the network and of cheap classifiers of light "
        "profiles, on the same stamps",
        rule=RULES["baseline"],
        why=MEANINGS["baseline"],
        remedy="Claim from AUROC and completeness nothing beyond light profiles; `pairs` says what "
        "it sees of lensing.",
        figure="probe#baseline", docs="light-profiles-as-a-baseline",
    ),
    Item("ring_probe", "science", "warn", science.check_ring_probe,
        title="Rings without a lens",
        measures="mean score of rings with the flux and colours of arcs, on blank sky and on "
        "non-lenses",
        rule=RULES["ring_probe"],
        why=MEANINGS["ring_probe"],
        remedy="Show the finder rings that are no lenses: real ring galaxies, or counterfactuals "
        "of kind scattered.",
        figure="probe#injections", docs="the-probes",
    ),
    Item("psf_depth", "science", "warn", leaks.check_psf_depth,
        title="Labels from seeing and depth",
        measures="logistic regression on seeing and depth",
        rule="its AUROC is not surely above {science.psf_depth_upper:g}",
        why=MEANINGS["psf_depth_only"],
        remedy="Draw lenses and non-lenses from the same exposures, and convert again.",
    ),
    Item("brightness_only", "science", "warn", hosts.check_brightness_only,
        title="Labels from brightness",
        measures="logistic regression on the flux in each band, against non-lenses with arc flux "
        "added (in the probe of this name without it)",
        rule="its AUROC is not surely above {science.brightness_upper:g}",
        why="Arcs make lenses brighter, so their light is added to the non-lenses first. What is "
        "left is the hosts.",
        remedy="Select hosts of both classes alike in brightness and colour, and convert again.",
        docs=_INJECTIONS,
    ),
    Item("leave_one_out", "science", "warn", outside.check_leave_one_out,
        title="Values that training left out",
        measures="completeness on values left out of training",
        rule="it falls by at most {science.left_out_drop!p} of the lenses, or stays within the "
        "interval",
        why="A finder that knows only the values of its grid of injections does not know the "
        "values of the sky.",
        remedy="Train on a finer grid, or on continuous values, of the columns named.",
    ),
    Item("confusers", "science", "blocker", outside.check_confusers,
        title="Objects that look like lenses",
        measures="flagged share of each kind",
        rule="each is at most {science.confuser_factor:g} times that of all non-lenses",
        why="They are rare among non-lenses drawn at random, and most of what the candidates of a "
        "survey turn out to be.",
        remedy="Add labelled ones of the kinds named to the training set.",
        docs=_REAL, publish=True,
    ),
    Item("blank", "science", "blocker", outside.check_blank,
        title="Blank fields",
        measures="flagged share of blank fields; of synthetic ones if there are none",
        rule="their share is at most {science.confuser_factor:g} times that of all non-lenses",
        why="There is no lens without a galaxy.",
        remedy="Add blank fields to the training set.",
        docs=_REAL, publish=True,
    ),
    Item("artefacts", "science", "blocker", outside.check_artefacts,
        title="Artefacts",
        measures="flagged share of bleed trails, spikes, ghosts",
        rule="their share is at most {science.confuser_factor:g} times that of all non-lenses",
        why="The images of a survey hold them; a training set that was cleaned does not.",
        remedy="Add labelled ones to the training set, or mask them before scoring.",
        docs=_REAL, publish=True,
    ),
    Item("real_lenses", "science", "blocker", outside.check_real_lenses,
        title="Real lenses",
        measures="recall of {science.min_real} or more",
        rule="the lower end of its Wilson interval is above {science.real_lower:g}",
        why="Injections are a model. Published finders recover 70 to 85% of real lenses.",
        remedy="Compare hosts, seeing and arcs of those that are missed with the injections', and "
        "inject lenses like them.",
        docs=_REAL, publish=True,
    ),
    Item("realism", "science", "warn", realism.check_realism,
        title="Real against injected lenses",
        measures="logistic regression of real against injected lenses on the network's features",
        rule="the upper end of the AUROC is at most {science.realism_upper:g}",
        why="If the network tells them apart, its completeness for injected lenses is not that "
        "for real ones.",
        remedy="Compare hosts, seeing and arcs of both, and inject lenses like the real ones.",
        figure="report#origins", docs="real-against-injected-lenses",
    ),
    Item("attribution", "science", "info", science.check_attribution,
        title="Where the evidence lies",
        measures="share of the occlusion and Grad-CAM maps that lies on the arcs, over the share "
        "of area",
        rule=RULES["attribution"],
        why=MEANINGS["attribution"],
        remedy="See in the maps what else the finder looks at.",
        figure="probe#attribution", docs="the-probes",
    ),
)
# fmt: on
"""The tables of docs/how-to/audit.md are made from it."""


def run_item(item: Item, evidence: Evidence, config: AuditConfig) -> Finding:
    """Measure one item; what cannot be measured is a finding too."""
    try:
        found = item.check(evidence, config)
    except ProjectError as error:
        found = Outcome(detail=str(error))
    return judged(item, found, config)


def judged(item: Item, found: Outcome, config: AuditConfig) -> Finding:
    """The finding of an item that follows from what was measured."""
    lenient = item.publish and config.purpose == "internal"
    severity = "warn" if lenient else item.severity
    return Finding(
        item=item.name,
        group=item.group,
        severity=found.severity or severity,
        passed=found.passed,
        measured=plain(found.measured),
        threshold=plain(found.threshold),
        detail=found.detail,
        rule=item.filled(item.rule, config),
        remedy=(found.remedy or item.remedy) if found.passed is False else "",
    )
