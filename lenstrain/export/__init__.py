"""A finder as one file that others can run: raw stamps in, a calibrated probability out."""

from lenstrain.export.export import FLUX_WORDS, export, export_all
from lenstrain.export.exported import FORMATS, Exported, open_exported

__all__ = ["FLUX_WORDS", "FORMATS", "Exported", "export", "export_all", "open_exported"]
