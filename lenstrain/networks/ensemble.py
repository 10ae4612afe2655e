"""One network or several as one scorer: a logit for each member, and what their heads see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lenstrain.networks.d4 import D4_ORDER, transform


class D4Mean(nn.Module):
    """A model whose logit is the mean over the 8 rotations and flips of each stamp.

    Parameters
    ----------
    model : nn.Module
        Maps (B, bands, S, S) to (B,).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mean logits, float32, shape (B,)."""
        total_B = x_BCHW.new_zeros(len(x_BCHW), dtype=torch.float32)
        for element in range(D4_ORDER):
            element_B = torch.full((len(x_BCHW),), element, device=x_BCHW.device)
            total_B += self.model(transform(x_BCHW, element_B)).float()
        return total_B / D4_ORDER


class Ensemble(nn.Module):
    """Several finders side by side.

    Parameters
    ----------
    members : sequence of nn.Module
        Each maps (B, bands, S, S) to (B,) and has a linear ``head``.
    tta : bool
        Average logits and embeddings over the 8 rotations and flips of each stamp.
    embeddings : bool
        Keep what each head sees.
    """

    def __init__(
        self, members: Sequence[nn.Module], *, tta: bool = False, embeddings: bool = False
    ) -> None:
        super().__init__()
        self._seen = [_Seen(member) for member in members] if embeddings else []
        self.members = nn.ModuleList(D4Mean(m) if tta else m for m in members)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, float32, shape (B, members), and embeddings, shape (B, features) each."""
        logit_BM = torch.stack([member(x_BCHW).float() for member in self.members], dim=1)
        return logit_BM, [seen.mean() for seen in self._seen]


class _Seen:
    """Collects the inputs of a model's head while it runs."""

    def __init__(self, model: nn.Module) -> None:
        self._inputs: list[Tensor] = []
        model.get_submodule("head").register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._inputs.append(arguments[0].float())

    def mean(self) -> Tensor:
        """Mean of the inputs since the last call, shape (B, features)."""
        inputs, self._inputs = self._inputs, []
        return torch.stack(inputs).mean(0)
