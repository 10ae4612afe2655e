"""What runs independent tasks: this machine, Dask or Spark."""

from lensprep.engine.base import Engine, default_workers
from lensprep.engine.local import run_tasks
from lensprep.engine.registry import ENGINES, make_engine

__all__ = ["ENGINES", "Engine", "default_workers", "make_engine", "run_tasks"]
