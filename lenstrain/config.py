"""Configuration of a training run: frozen sections, each checked when made, touching nothing."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from lensprep.configfile import from_mapping, to_mapping, typed
from lensprep.dataset.geometry import MOST_SIDE
from lensprep.errors import ConfigError

_ARCHITECTURES = Path(__file__).parent / "networks" / "architectures"
ARCHITECTURES: Final = tuple(file.name for file in pkgutil.iter_modules([str(_ARCHITECTURES)]))
"""Names of the networks: those of the files in their folder, which are not imported here."""
if TYPE_CHECKING:
    Arch = str
else:
    Arch = Literal[ARCHITECTURES]
WHERE_RESOLVED: Final = "label == 0 or theta_e_arcsec >= 0.5 * psfsize_r"
"""``data.where`` that learns only from lenses whose shape can be seen, as is advised with
counterfactuals: an unresolved lens and the same light unlensed are nearly one image."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What a step is fed with."""

    batch_size: int = 256
    """Stamps per optimiser step, over all processes."""

    shuffle: Literal["global", "block"] = "global"
    """``global`` permutes all rows each epoch; ``block`` keeps reads long, for object stores."""

    drop_last: bool = False
    """Leave out the rows that do not fill a last batch. Otherwise it is filled with weight 0."""

    memory_budget_gb: float = 2.0
    """Memory in GB that reading ahead may take in each process: three quarters for training, a
    quarter for validation. A global shuffle from an object store without a cache must fit in it."""

    cache_dir: str | None = None
    """Folder on a fast local disk where shards of an object store are kept, shared by all processes
    of a node and by later runs. A local dataset is read where it is."""

    cache: Literal["auto", "always"] = "auto"
    """Without effect: a cache that is named is used. Read so that older configurations are."""

    cache_limit_gb: float = 900.0
    """Most GB of shards in the cache, of all datasets. What does not fit is streamed."""

    cache_reserve_gb: float = 20.0
    """GB of the cache's disk that stay free."""

    disk_mb_per_s: float | None = None
    """Without effect, as ``cache``."""

    store_mb_per_s: float | None = None
    """Without effect, as ``cache``."""

    where: str | None = None
    """Train only on rows for which this is true, such as ``"psfsize_r < 1.4"``."""

    limit: int | None = None
    """Train only on the first rows of the (shuffled) dataset, of those that ``where`` keeps."""

    sampling: Literal["uniform", "balanced"] = "uniform"
    """``balanced`` shows both classes equally often."""

    sample_weights: str | None = None
    """Table (parquet, CSV, FITS or VOTable, local or s3://) with columns key and weight, such as
    `lenstrain mine` writes: a row of weight 4 comes four times as often as one that is not listed.
    An epoch keeps its length."""

    rates: dict[str, float] = field(default_factory=dict)
    """How often rows come, relative to the others: by origin, ``{real = 10, simulated = 1}``, or by
    any expression on the columns, ``{"kind == 'ring'" = 5}``. Rates that apply to a row multiply,
    also with ``sample_weights``; what none applies to has rate 1. An epoch keeps its length, and
    holds of each as much as every other epoch, to within one row."""

    counterfactual_share: float = 0.0
    """Share of an epoch's rows that are counterfactuals (`lensprep counterfactual`). They come
    besides the ordinary rows, so that an epoch grows; ``limit``, ``sampling``,
    ``sample_weights`` and ``rates`` are about ordinary rows alone; ``where`` must be true of a
    counterfactual and of the lens of its family. 0 leaves them out."""

    d4: bool = True
    """Turn and flip every training stamp by one of the 8 elements of D4, each equally likely."""

    shift_px: int = 0
    """Largest random shift in x and y, in pixels (0 to 2 is sensible). The dataset says how large a
    pixel is: 0.262 arcsec in DECaLS."""

    def __post_init__(self) -> None:
        _at_least(1, self, "batch_size", "limit")
        _at_least(0, self, "cache_limit_gb", "cache_reserve_gb")
        _within(self, "shift_px", 0, 8)
        if not 0 <= self.counterfactual_share < 1:
            raise ValueError(
                f"counterfactual_share must lie in [0, 1), got {self.counterfactual_share}"
            )
        if self.cache_dir is not None and "://" in self.cache_dir:
            raise ValueError(f"cache_dir must be a folder on a local disk, got {self.cache_dir!r}")
        for name in ("memory_budget_gb", "disk_mb_per_s", "store_mb_per_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network: (B, bands, side, side) normalised pixels to one logit each."""

    arch: Arch = "resnet18"
    """``resnet_small`` is a narrow ResNet of one block a stage, for CPUs; the others are as
    published, apart from the stem."""

    stem: Literal["fine", "imagenet"] = "fine"
    """``fine`` keeps the resolution of a stamp (or ``crop``) of up to 96 px: ResNets start with a
    3x3 convolution of stride 1 and no pooling, EfficientNet with stride 1, ConvNeXt with 2x2
    patches. Of larger ones it keeps a half, from 193 px on a quarter: stride 2 or 4 (7x7 pixels),
    patches of 4x4 or 8x8. ``imagenet`` is the published stem: at 64 px 15 times cheaper, but the
    last map of a ResNet has 2x2 pixels."""

    width: int | None = None
    """Channels of the first stage of a ResNet, doubled in each next one. Default 64, small 16."""

    blocks: tuple[int, ...] | None = None
    """Residual blocks of each stage of ``resnet_small``, at most 64; two to four stages. Default
    [1, 1, 1]."""

    crop: int | None = None
    """Side in pixels of the central window that the network sees; the whole stamp if not set. It is
    even for stamps of an even side, and odd for others."""

    norm: Literal["batch", "group"] = "batch"
    """Normalisation in ResNets; ``group`` (8 groups) does not depend on the batch."""

    dropout: float = 0.0
    """Share of features dropped before the head while training."""

    weights: str | None = None
    """A file of weights to start from, local or s3://: a checkpoint of this program, or a state
    dict."""

    def __post_init__(self) -> None:
        resnet = self.arch.startswith("resnet")
        if self.width is not None:
            _within(self, "width", 8, 1 << 24)  # beyond, sizes overflow
            if not resnet or self.width % 8:
                raise ValueError("width must be a multiple of 8 and is an option of ResNets only")
        if self.blocks is not None and (
            self.arch != "resnet_small"
            or not 2 <= len(self.blocks) <= 4
            or not all(1 <= number <= 64 for number in self.blocks)
        ):
            raise ValueError("blocks takes two to four numbers, 1 to 64, for resnet_small only")
        if self.norm != "batch" and not resnet:
            raise ValueError("norm is an option of ResNets only")
        if self.crop is not None:
            _within(self, "crop", 16, MOST_SIDE)  # the rest depends on the stamps: see `check_crop`
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 3e-4
    """Peak learning rate, reached at the end of the warm-up."""

    min_lr: float = 1e-6
    """Learning rate at which the cosine ends."""

    warmup_epochs: float = 1.0
    """Length of the linear warm-up in epochs; rounded to steps, and at most half the run."""

    weight_decay: float = 1e-2
    """Decoupled decay of convolution and linear weights; biases and norms have none."""

    beta1: float = 0.9
    """Decay of the mean of gradients."""

    beta2: float = 0.999
    """Decay of the mean of squared gradients."""

    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 clips nothing. The norm before it is logged."""

    accumulate: int = 1
    """Parts into which each batch is cut to save memory; one optimiser step for all of them. Their
    sizes differ by one stamp if the batch cannot be divided evenly."""

    ema_decay: float = 0.0
    """Decay of the moving average of weights that is validated and scored with; 0 keeps none."""

    def __post_init__(self) -> None:
        if not 0 < self.min_lr <= self.lr:
            raise ValueError(f"0 < min_lr <= lr must hold, got {self.min_lr} and {self.lr}")
        _at_least(0, self, "warmup_epochs", "weight_decay", "clip_norm")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        _at_least(1, self, "accumulate")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What is minimised."""

    name: Literal["bce", "focal"] = "bce"
    """Binary cross-entropy on logits, or its focal form (Lin et al. 2017, arXiv:1708.02002)."""

    label_smoothing: float = 0.0
    """Targets become ``y (1 - s) + s / 2``. It distorts calibration; the NLL logged is without."""

    focal_gamma: float = 2.0
    """Exponent by which easy stamps lose weight in the focal form."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        _at_least(0, self, "focal_gamma")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The run: length, stopping, precision, records."""

    epochs: int = 10
    """Passes over the training split; the cosine ends with the last one."""

    seed: int = 0
    """Seed of weights, order and augmentation."""

    patience: int = 5
    """Epochs without a gain in ``monitor`` after which the run stops; 0 never stops."""

    min_delta: float = 0.0
    """Gain that counts. Near AUROC 0.99 even 0.001 is a tenth of what is left to gain."""

    monitor: str = "auroc"
    """Validation metric that decides on ``best.pt`` and on stopping: ``auroc``, ``nll``,
    ``tpr_at_fpr``, ``pair_auroc`` (where the split has counterfactuals) or another that may
    steer. Of rows of several origins it is that of the rows which `lenstrain evaluate` has in its
    headline: of the first origin with both classes, simulated before real."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU if there is one."""

    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Precision of the network in training. ``auto``: bf16 on A100 and later, fp16 with a scaled
    loss on older GPUs such as V100, off on a CPU, where fp16 is refused. ``eval.amp`` is that of
    the validation."""

    channels_last: bool = True
    """Keep images with channels innermost, which convolutions prefer on GPUs and CPUs alike."""

    compile: bool = False
    """Compile the network: pays on long runs on a GPU, costs a minute at the start, and another for
    validation (and one if ``accumulate`` does not divide the batch). Off by default until
    `lenstrain bench train` has shown on a GPU what it gains; 15 % would be enough."""

    tf32: bool = True
    """Let float32 convolutions and products use TF32 on A100 and later, in training and, with
    ``eval.amp = "auto"``, in validation."""

    cudnn_benchmark: bool = True
    """Let cuDNN try its algorithms on the first batch; the choice can differ between runs."""

    sync_batchnorm: bool = False
    """Batch statistics over all processes, on GPUs only; of use if a process has fewer than about
    32 stamps."""

    log_every: int = 50
    """Steps between lines of the log. Nothing waits for the device between them."""

    pictures: bool = True
    """Show every validation in TensorBoard by its PR curve, its reliability and the stamps that are
    scored most wrongly: about 0.4 s of a core each, and 200 kB. Numbers are there in any case."""

    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; every epoch ends with one. 0: only those."""

    checkpoint_copy: str | None = None
    """Where the run is sent as it is written: ``s3://bucket/runs/a`` or a folder on another disk.
    With ``--resume`` the run continues from the run folder or from this copy, whichever is further
    along. A run with ``--out s3://`` needs no such key."""

    timeout_minutes: float = 10.0
    """Minutes after which a process that waits for a lost one gives up, under torchrun."""

    def __post_init__(self) -> None:
        _at_least(1, self, "epochs", "log_every")
        _at_least(0, self, "seed", "patience", "min_delta", "checkpoint_minutes")
        if self.timeout_minutes <= 0:
            raise ValueError(f"timeout_minutes must be above 0, got {self.timeout_minutes}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """The validation after each epoch, always on every row of the split."""

    split: Literal["train", "val", "test"] = "val"
    """Split to validate on. ``test`` is opened once, by `lenstrain infer`, not here."""

    batch_size: int = 512
    """Stamps per forward pass, over all processes."""

    fpr: float = 1e-3
    """False-positive rate at which ``tpr_at_fpr`` is taken."""

    amp: Literal["auto", "off", "bf16"] = "auto"
    """Precision of the network in validation. ``auto``: that of training. ``off``: float32 without
    TF32, in which `lenstrain infer` scores unless told otherwise; on a GPU that takes longer."""

    def __post_init__(self) -> None:
        _at_least(1, self, "batch_size")
        if not 0 < self.fpr < 1:
            raise ValueError(f"fpr must lie between 0 and 1, got {self.fpr}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    """What a step is fed with."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedule."""

    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The run."""

    eval: EvalConfig = field(default_factory=EvalConfig)
    """The validation after each epoch."""


def completed(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored configuration, with the defaults of keys that were added since it was written."""
    try:
        return to_mapping(from_mapping(Config, configuration))
    except ConfigError:  # keys that were removed since: whoever compares will name them
        return configuration


def _at_least(least: float, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _within(config: object, name: str, least: int, most: int) -> None:
    value = getattr(config, name)
    if not least <= value <= most:
        raise ValueError(f"{name} must lie between {least} and {most}, got {value}")
