"""The network as others run it: flux in, the logit and a probability out, nothing else to know.

    Normalize(spec, geometry)                       flux -> what is stored of it, and what is usable
    FluxFinder(model, facts)                        flux -> logit, probability

Both are made of operators that ONNX and `torch.export` have, with any number of stamps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from lensprep.dataset import Geometry, NormalizationSpec
from lensprep.dataset.normalization import MAD_TO_SIGMA, measured_pixels, normalization_spec
from lenstrain.export.quiet import quiet
from lenstrain.networks.d4 import D4_ORDER, transform
from lenstrain.training.portable import map_of

_TOO_BRIGHT: Final = 2.0**125
"""Flux from which on, as infinity and NaN, conversion rejects a stamp: sums of it overflow."""


class Normalize(nn.Module):
    """Raw pixels to stored ones, as float32: `lensprep.decode.normalize` in torch.

    Of every stamp that conversion accepts the values are those that it stores, but where a
    logarithm in another library's last digit falls on the other side of a rounding.

    Parameters
    ----------
    spec : NormalizationSpec
    geometry : Geometry
        Of the stamps.

    Raises
    ------
    ConfigError
        If this version does not know the mode.
    """

    where: Tensor | None
    softening: Tensor | None

    def __init__(self, spec: NormalizationSpec, geometry: Geometry) -> None:
        super().__init__()
        spec = normalization_spec(spec.mode, spec.clip, geometry, **spec.parameters)
        self.mode, self.clip = spec.mode, spec.clip
        where = measured_pixels(spec, geometry.side)
        # Not persistent: they follow from the facts of a file, and are no weights.
        self.register_buffer(
            "where", None if where is None else torch.from_numpy(where), persistent=False
        )
        softening = None
        if not spec.by_stamp:
            softening = torch.tensor([*spec.parameters.values()], dtype=torch.float64)[
                :, None, None
            ]
        self.register_buffer("softening", softening, persistent=False)

    def forward(self, flux_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise stamps.

        Parameters
        ----------
        flux_BCHW : tensor of float32, shape (B, bands, side, side)

        Returns
        -------
        stored_BCHW : tensor of float32, same shape
            Without meaning where a stamp is not usable.
        usable_B : tensor of bool, shape (B,)
            Whether every pixel is finite and no band is of one value, nor, where a mode divides by
            it, without scatter.
        """
        usable_B = (flux_BCHW.abs() < _TOO_BRIGHT).flatten(1).all(1)  # false of NaN
        # No NaN goes further: runtimes sort, compare and clip it each in its own way.
        flux_BCHW = torch.where(usable_B[:, None, None, None], flux_BCHW, 0.0)
        if self.softening is not None:
            values_BCHW = _asinh(flux_BCHW, self.softening)
            has_scatter_BC = flux_BCHW.amax((2, 3)) > flux_BCHW.amin((2, 3))
        else:
            values_BCHW, has_scatter_BC = self._scaled(flux_BCHW)
        stored_BCHW = values_BCHW.clamp(-self.clip, self.clip).half().float()
        return stored_BCHW, usable_B & has_scatter_BC.all(1)

    def _scaled(self, flux_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        flux_BCP = flux_BCHW.flatten(2)
        measured_BCM = flux_BCP if self.where is None else flux_BCP.index_select(2, self.where)
        median_BC1 = _median(measured_BCM)
        scale_BC1 = _median((measured_BCM - median_BC1).abs()) * float(MAD_TO_SIGMA)
        values_BCHW = ((flux_BCP - median_BC1) / scale_BC1).view(flux_BCHW.shape)
        if self.mode == "sqrt":
            # In float64: torch's own float32 root is off by a last digit on some processors.
            root_BCHW = values_BCHW.abs().double().sqrt().float()
            values_BCHW = torch.where(values_BCHW < 0, -root_BCHW, root_BCHW)
        return values_BCHW, scale_BC1[..., 0] > 0


def _asinh(flux_BCHW: Tensor, softening_C11: Tensor) -> Tensor:
    """``asinh(flux / softening)`` in float64, from a logarithm: onnxruntime has no other."""
    size_BCHW = flux_BCHW.double().abs() / softening_C11
    size_BCHW = torch.log(size_BCHW + torch.sqrt(size_BCHW * size_BCHW + 1.0)).float()
    return torch.where(flux_BCHW < 0, -size_BCHW, size_BCHW)


def _median(values_BCM: Tensor) -> Tensor:
    """Median over the last dimension, which is kept; of an even number the mean of the middle two.

    `torch.median` takes the lower one, and `torch.quantile` is not exact.
    """
    count = values_BCM.shape[-1]
    lower = values_BCM.topk(count // 2 + 1, largest=False).values
    upper = lower[..., -1:]
    return upper if count % 2 else (lower[..., -2:-1] + upper) / 2


class FluxFinder(nn.Module):
    """A finder with its normalisation before and its calibration behind.

    Parameters
    ----------
    model : nn.Module
        Maps normalised float32 (B, bands, side, side) to logits (B,); in evaluation mode.
    facts : mapping
        ``normalization``, ``geometry``, ``tta`` and ``calibration``, as an exported file has them.
    """

    turned: Tensor | None

    def __init__(self, model: nn.Module, facts: Mapping[str, Any]) -> None:
        super().__init__()
        geometry = Geometry.from_dict(facts["geometry"])
        spec = NormalizationSpec.from_dict(facts["normalization"])
        self.model = model
        self.shape = geometry.shape
        self.normalize = Normalize(spec, geometry)
        self.slope, self.offset = map_of(facts["calibration"])
        turned_DP = None
        if facts["tta"]:
            side = geometry.side
            number_BCHW = (
                torch.arange(side * side).view(1, 1, side, side).expand(D4_ORDER, -1, -1, -1)
            )
            turned_DP = transform(number_BCHW, torch.arange(D4_ORDER)).flatten(1)
        self.register_buffer("turned", turned_DP, persistent=False)
        self.eval()

    def forward(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Score stamps.

        Parameters
        ----------
        flux : tensor of float32, shape (B, bands, side, side)
            In the unit of the survey.

        Returns
        -------
        logit, probability : tensor of float32, shape (B,)
            NaN of a stamp that conversion could not have stored (`Normalize.forward`).
        """
        x_BCHW, usable_B = self.normalize(flux)
        if self.turned is None:
            logit_B = self.model(x_BCHW)
        else:
            # All elements of D4 in one batch: the network is written once, not eight times.
            turned_BCDP = x_BCHW.flatten(2)[..., self.turned]
            turned_DBCP = turned_BCDP.permute(2, 0, 1, 3)
            logit_B = (
                self.model(turned_DBCP.reshape(-1, *x_BCHW.shape[1:])).view(D4_ORDER, -1).mean(0)
            )
        logit_B = torch.where(usable_B, logit_B.float(), torch.nan)
        probability_B = torch.sigmoid(logit_B.double() * self.slope + self.offset).float()
        return logit_B, probability_B

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The same as a graph of ATen operators for any number of stamps, traced once.

        Without what the tracer notes of this machine: where each line of our code lies on it.
        """
        with quiet():
            program = torch.export.export(
                self,
                (torch.zeros(2, *self.shape),),
                dynamic_shapes={"flux": {0: torch.export.Dim("batch", min=1)}},
            ).run_decompositions({})
        for node in program.graph.nodes:
            node.meta = {n: node.meta[n] for n in ("val", "tensor_meta") if n in node.meta}
        return program
