"""Rates and thresholds as people read them."""

from __future__ import annotations

import re

import numpy as np


def rate_text(rate: float) -> str:
    """A rate in percent, never with an exponent: ``0.001%`` of 1e-5."""
    return f"{np.format_float_positional(float(f'{100 * rate:.6g}'), trim='-')}%"


def threshold_text(name: str) -> str:
    """Name of a threshold in metrics.json, for people: ``FPR 1%`` of ``FPR 0.01``.

    The names of `lenstrain.evaluation.operating` are known; any other stays as it is.
    """
    if found := re.fullmatch(r"FPR (\S+)", name):
        return f"FPR {rate_text(float(found[1]))}"
    if found := re.fullmatch(r"(\S+) false in (\S+)", name):
        return "{:,.10g} false among {:,.10g}".format(*map(float, found.groups()))
    if found := re.fullmatch(r"(F\S+) at prevalence (\S+)", name):
        return f"{found[1]} at 1 lens in {1 / float(found[2]):,.0f}"
    return name
