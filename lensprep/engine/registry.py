"""The engines by name. A new one is a file in this folder, its line here, and its extra.

    with make_engine("dask", scheduler="tcp://host:8786") as engine:
        for result in engine.run(function, tasks): ...

An engine's module, and the library of its cluster, are imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final, NamedTuple, cast

from lensprep.engine.base import Engine
from lensprep.errors import ConfigError
from lensprep.extras import install_hint


class Registered(NamedTuple):
    """Where an engine is, and what it needs."""

    module: str
    """Imported when the engine is asked for."""
    name: str
    """Its class, made with ``workers``; that of a cluster with the address before it."""
    library: str | None = None
    """Module of the cluster's library, known to `lensprep.extras`; None without a cluster."""


ENGINES: Final = {
    "local": Registered("lensprep.engine.local", "LocalEngine"),
    "dask": Registered("lensprep.engine.dask", "DaskEngine", "distributed"),
    "spark": Registered("lensprep.engine.spark", "SparkEngine", "pyspark"),
}


def make_engine(name: str, *, workers: int | None = None, scheduler: str | None = None) -> Engine:
    """Choose an engine; it starts when it is entered.

    Parameters
    ----------
    name : str
        One of ``ENGINES``.
    workers : int, optional
        Processes of this machine; as many as processors if not given.
    scheduler : str, optional
        Address of a Dask scheduler, or master URL of a Spark cluster, to use instead.

    Raises
    ------
    ConfigError
        If there is no such engine, the options contradict each other, or it is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"There is no engine {name!r}. Choose one of {', '.join(ENGINES)}.")
    module, kind, library = ENGINES[name]
    if scheduler is not None and library is None:
        clusters = [f"--engine {other}" for other, found in ENGINES.items() if found.library]
        raise ConfigError(f"--scheduler needs {' or '.join(clusters)}.")
    if scheduler is not None and workers is not None:
        raise ConfigError(
            "--workers counts processes of this machine; a cluster (--scheduler) has its own. "
            "Give one of the two."
        )
    if library is None:
        return cast(Engine, getattr(import_module(module), kind)(workers=workers))
    try:
        import_module(library)
    except ModuleNotFoundError:
        raise ConfigError(install_hint(library)) from None
    return cast(Engine, getattr(import_module(module), kind)(scheduler, workers=workers))
