"""Finders in ONNX: written by torch's exporter, freed of its traces, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lensprep.errors import CheckpointError, ConfigError, error_line
from lenstrain.export.network import FluxFinder
from lenstrain.export.quiet import quiet
from lenstrain.training.portable import AGAIN, KEY, facts_text, parse_facts

OPSET: Final = 18
"""Of the operators: onnxruntime has them since 1.14, and so have most other runtimes."""
INPUT: Final = "flux"
OUTPUTS: Final = ("logit", "probability")
_LEAST_TORCH: Final = "2.6"


def write(path: Path, finder: FluxFinder, facts: Mapping[str, Any]) -> None:
    """Write a finder: one file, for any number of stamps, with the facts as its metadata.

    Raises
    ------
    ConfigError
        If this torch has no exporter that takes a traced program.
    """
    if torch.__version__ < _LEAST_TORCH:
        raise ConfigError(
            f"ONNX is written by torch {_LEAST_TORCH} or later, and this is {torch.__version__}. "
            "Upgrade torch, or write .safetensors."
        )
    import onnx
    import onnxscript  # noqa: F401 - torch's exporter needs it, and would say so in its own words

    with quiet():
        exported = torch.onnx.export(
            finder.program,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    # What the exporter notes of its own work, and shapes that any reader infers again.
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, {KEY: facts_text(facts)})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


class OnnxFinder:
    """A file that `write` has written, run by onnxruntime on the CPU.

    Parameters
    ----------
    path : Path
    where : str
        Its name in messages.

    Raises
    ------
    CheckpointError
        If it is damaged or not ours.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, where: str) -> None:
        import onnx
        import onnxruntime

        self.version = str(onnxruntime.__version__)
        data = path.read_bytes()
        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:  # protobuf has several kinds
            raise CheckpointError(
                f"{where} is no ONNX file ({error_line(error)}). {AGAIN}"
            ) from None
        found = {entry.key: entry.value for entry in model.metadata_props}
        self.facts = parse_facts(found.get(KEY), where)
        names = [value.name for value in model.graph.input]
        outputs = [value.name for value in model.graph.output]
        if names != [INPUT] or outputs != [*OUTPUTS]:
            raise CheckpointError(
                f"{where} is no finder of lenstrain: it makes {', '.join(outputs)} of "
                f"{', '.join(names)}, not {' and '.join(OUTPUTS)} of {INPUT}. Export it again."
            )
        if any(
            onnx.external_data_helper.uses_external_data(one) for one in model.graph.initializer
        ):
            raise CheckpointError(f"{where} keeps weights in other files. Export it again.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised too
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of a class for each of its statuses
            raise CheckpointError(
                f"{where} cannot be run ({error_line(error)}). Export it again."
            ) from None

    def run(self, flux: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Logits and probabilities of a batch."""
        found: list[NDArray[np.float32]] = self._session.run([*OUTPUTS], {INPUT: flux})
        return found
