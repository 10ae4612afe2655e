"""Who runs independent tasks: this machine, Dask or Spark."""

from lensprep.engine.local import Engine, make_engine

__all__ = ["Engine", "make_engine"]
