"""The conversion of a source into a dataset, in two rounds of tasks."""

from lensprep.convert.config import ConvertConfig, CutoutConfig
from lensprep.convert.conversion import convert

__all__ = ["ConvertConfig", "CutoutConfig", "convert"]
