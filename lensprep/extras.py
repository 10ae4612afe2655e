"""The optional dependencies, and what to say if one is missing."""

from __future__ import annotations

from typing import Final

from lensprep import __version__

EXTRAS: Final = {
    "train": (
        "jinja2",
        "optuna",
        "sklearn",
        "tensorboard",
        "threadpoolctl",
        "torch",
        "torchvision",
    ),
    "synth": ("lenstronomy",),
    "hdf5": ("h5py",),
    "publish": (
        "onnx",
        "onnxruntime",
        "onnxscript",
        "safetensors",
    ),
    "dask": ("dask", "dask_jobqueue", "distributed"),
    "spark": ("pyspark",),
}
"""Modules by the extra of this distribution that installs them."""

REQUIRED: Final = (
    "PIL",
    "astropy",
    "astropy_healpix",
    "boto3",
    "click",
    "deflate",
    "matplotlib",
    "numba",
    "numpy",
    "packaging",
    "pyarrow",
    "rich",
    "scipy",
    "tomli_w",
    "webdataset",
    "xxhash",
)
"""Modules that are always installed with it."""


def install_hint(module: str) -> str | None:
    """How to install a module that cannot be imported; None if no extra has it or its package.

    The distribution is on no package index: its name alone would install nothing, or another's.
    """
    top = module.partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return (
                f"{top} is not installed; the extra `{extra}` brings it. In a checkout: "
                f"pip install '.[{extra}]'; from a wheel: "
                f"pip install './lensprep-{__version__}-py3-none-any.whl[{extra}]'."
            )
    return None
