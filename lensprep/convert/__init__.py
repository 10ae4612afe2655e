"""The conversion of a source into a dataset, in two rounds of tasks."""

from lensprep.convert.conversion import ConvertConfig, convert

__all__ = ["ConvertConfig", "convert"]
