"""Finders as programs of `torch.export`: written without traces, read without running anything.

`torch.export.load` unpickles whatever a file says is pickled, and evaluates the expressions of its
shapes as code. So an archive is taken apart first: a file that holds more than plain tensors and a
graph of ATen operators is refused, and torch is given a copy of what was checked.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lensprep.errors import CheckpointError, error_line
from lenstrain.export.network import FluxFinder
from lenstrain.export.quiet import quiet
from lenstrain.training.checkpoint import MOST_BYTES
from lenstrain.training.portable import AGAIN, KEY, facts_text, parse_facts
from lenstrain.training.validate import full_float32

_FACTS: Final = f"{KEY}.json"
_MEMBER: Final = re.compile(
    r"models/model\.json|data/(weights/(weight_\d+|model_weights_config\.json)"
    r"|constants/(tensor_\d+|model_constants_config\.json)|sample_inputs/model\.pt)"
    rf"|extra/{re.escape(_FACTS)}|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|\.format_version"
)
"""Names in an archive that `write` has written."""
_STRINGS: Final = {
    "target": re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.mul"),
    "expr_str": re.compile(
        r"((Symbol|Integer|Mul|Add|Min|Max)\(|'s\d+'|(positive|integer)=True|-?\d+|[ ,)])+"
    ),
    "in_spec": re.compile(r'([^"]|"(type|context|children_spec|builtins\.\w+|null|\[\])")*'),
    "out_spec": re.compile(r'([^"]|"(type|context|children_spec|builtins\.\w+|null)")*'),
}
"""Text that torch calls, evaluates or looks up, and what of it is harmless."""


def write(path: Path, finder: FluxFinder, facts: Mapping[str, Any]) -> None:
    """Write a finder: one archive, for any number of stamps, with the facts as an extra file."""
    program = finder.program
    program._example_inputs = None  # it would be pickled, and is not needed to run it
    data = io.BytesIO()  # an archive is named inside after its file, which is a draft
    with quiet():
        torch.export.save(program, data, extra_files={_FACTS: facts_text(facts)})
    path.write_bytes(data.getvalue())


class ProgramFinder:
    """A file that `write` has written, run by torch on the CPU.

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

    runtime = "torch"
    version = str(torch.__version__)

    def __init__(self, path: Path, where: str) -> None:
        try:
            members = _members(path)
            text = members.get(f"extra/{_FACTS}", b"").decode()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise CheckpointError(
                f"{where} is no program of torch.export ({error_line(error)}). {AGAIN}"
            ) from None
        self.facts = parse_facts(text, where)
        try:
            _check(members)
            with quiet():
                program = torch.export.load(_archive(members))
                self._module = program.module()
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise CheckpointError(
                f"{where} cannot be run by torch {torch.__version__} ({error_line(error)}). Export "
                "it again, with this version of torch."
            ) from None

    def run(self, flux: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Logits and probabilities of a batch."""
        with torch.inference_mode(), full_float32():
            return [value.numpy() for value in self._module(torch.from_numpy(flux))]


def _members(path: Path) -> dict[str, bytes]:
    """Files of an archive, by their names in its one folder; ValueError if it has others."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MOST_BYTES:
            raise ValueError("it is too large")
        for entry in entries:
            _, _, name = entry.filename.partition("/")
            stored = entry.compress_type == zipfile.ZIP_STORED
            if not _MEMBER.fullmatch(name) or name in found or not stored:
                raise ValueError(f"it holds {entry.filename!r:.80}, which no finder has")
            found[name] = archive.read(entry)
    return found


def _check(members: Mapping[str, bytes]) -> None:
    """Refuse, with ValueError, what torch would unpickle or evaluate, but for plain expressions."""
    if members.get("data/sample_inputs/model.pt"):
        raise ValueError("it holds an example in pickle")
    for name in members:
        if name.endswith(".json") and not name.startswith("extra/"):
            _check_node(json.loads(members[name]), name)
    program = json.loads(members["models/model.json"])
    if program.get("guards_code"):
        raise ValueError("it holds guards in Python")


def _check_node(content: Any, name: str) -> None:
    for key, value in _entries(content):
        if key == "use_pickle" and value is not False:
            raise ValueError("it holds tensors in pickle")
        if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise ValueError(f"{name} names {value!r:.80}")
        if key == "metadata" and value:
            raise ValueError(f"{name} says more than a finder does")
        form = _STRINGS.get(key)
        if form is not None and not (isinstance(value, str) and form.fullmatch(value)):
            raise ValueError(f"its graph holds {value!r:.80}")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every entry of every object in it."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _archive(members: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of these files alone, however another reader would have read the first one."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    data.seek(0)
    return data
