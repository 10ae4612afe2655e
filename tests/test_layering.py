"""Which component may import which, read from the code, within and between both packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "lensprep").rglob("*.py"), *(ROOT / "lenstrain").rglob("*.py")])

MAY_IMPORT = {
    "lensprep.errors": "",
    "lensprep.kernel": "",
    "lensprep.extras": "",
    "lensprep.store": "",
    "lensprep.configfile": "store",
    "lensprep.texttable": "",
    "lensprep.tables": "store",
    "lensprep.drawing": "",
    "lensprep.dataset": "store tables drawing",
    "lensprep.terminal": "store extras configfile texttable dataset.layout",
    "lensprep.source": "dataset store tables configfile",
    "lensprep.engine": "store kernel extras",
    "lensprep.decode": "dataset source tables kernel",
    "lensprep.transfer": "dataset store",
    "lensprep.convert": "decode source engine dataset store configfile transfer",
    "lensprep.checks": "source decode dataset engine store tables texttable",
    "lensprep.inspection": "decode source dataset engine store tables texttable drawing",
    "lensprep.synth": "dataset source decode engine store kernel extras",
    "lensprep.counterfactual": "synth dataset source decode engine store kernel extras",
    "lensprep.machine": "checks dataset store engine extras",
    "lensprep.bench": "*",
    "lensprep.doctor": "*",
    "lenstrain.config": "",
    "lenstrain.data": "",
    "lenstrain.networks": "config",
    "lenstrain.scoretable": "",
    "lenstrain.evaluation": "scoretable",
    "lenstrain.figures": "evaluation",
    "lenstrain.training": "data networks config evaluation.metrics evaluation.calibration "
    "evaluation.pairs evaluation.headline figures",
    "lenstrain.scoring": "data networks config scoretable training.checkpoint "
    "training.distributed training.memory training.validate training.transfer",
    "lenstrain.pages": "evaluation scoretable figures",
    "lenstrain.probes": "scoring evaluation figures pages networks training",
    "lenstrain.generalize": "scoring training evaluation config",
    "lenstrain.audit": "config networks data training scoretable scoring evaluation pages probes "
    "generalize",
    "lenstrain.export": "config networks data training scoretable scoring evaluation probes",
    "lenstrain.publish": "export audit config networks training scoretable scoring evaluation "
    "probes pages figures",
    "lenstrain.sweep": "training evaluation.metrics figures pages config",
    "lenstrain.monitor": "config evaluation.metrics",
    "lenstrain.comparison": "monitor pages figures evaluation config",
    "lenstrain.bench": "data networks training config",
    "lenstrain.doctor": "bench networks training config",
}
"""What a component may import of its own package, beside itself and the errors, which are for all:
only what stands above it. ``*`` is all but the command line.

The command lines may import everything, and nobody imports them.
"""

ONE_FILE_MAY_ALSO = {"lensprep.decode.parts": "engine"}

OPEN_TO_LENSTRAIN = (
    "dataset store tables errors configfile kernel terminal texttable checks.finding machine"
)
"""What lenstrain may import of lensprep."""

OPEN_TO_ONE_FILE = {
    "lenstrain.scoring.origins": "decode.parts",
    "lenstrain.pages.examples": "decode.parts",
    "lenstrain.export.stamps": "decode.parts",
}

PURE = [
    "lensprep.decode.placement",
    "lensprep.decode.account",
    "lensprep.source.contract",
    "lensprep.source.survey",
    "lensprep.dataset.layout",
    "lensprep.dataset.normalization",
    "lensprep.dataset.rgb",
    "lenstrain.data.order",
    "lenstrain.training.schedule",
    "lenstrain.sweep.space",
    "lenstrain.monitor.diagnosis",
    "lenstrain.evaluation.metrics",
    "lenstrain.evaluation.intervals",
    "lenstrain.evaluation.clustered",
    "lenstrain.evaluation.rates",
    "lenstrain.evaluation.threshold",
    "lenstrain.evaluation.selection.axes",
    "lenstrain.evaluation.selection.fit",
    "lenstrain.evaluation.selection.function",
    "lenstrain.evaluation.selection.population",
]
TOUCHES_THE_WORLD = {
    "os",
    "pathlib",
    "shutil",
    "logging",
    "click",
    "rich",
    "boto3",
    "time",
    "datetime",
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {name_of(path): path for path in MODULES}
NAMES = PATHS.keys()


@cache
def imports(path: Path) -> list[str]:
    """Every module that a file imports, also inside functions, by its full name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.append(name if name in NAMES else str(node.module))
    return found


def packages(name: str) -> set[str]:
    """The packages of all that a module imports."""
    return {imported.split(".")[0] for imported in imports(PATHS[name])}


def lies_in(name: str, components: str, package: str) -> bool:
    """Whether a module is one of these components or files of a package, or lies in one."""
    return any(f"{name}.".startswith(f"{package}.{component}.") for component in components.split())


def forbidden(path: Path) -> list[str]:
    """What a file imports of the two packages although its component may not."""
    name = name_of(path)
    package, _, rest = name.partition(".")
    component = rest.partition(".")[0]
    allowed = MAY_IMPORT.get(f"{package}.{component}", "")
    own = f"errors {component} {allowed} {ONE_FILE_MAY_ALSO.get(name, '')}"
    beyond = f"{OPEN_TO_LENSTRAIN} {OPEN_TO_ONE_FILE.get(name, '')}"
    at_the_door = component in {"cli", "__main__"}
    wrong = []
    for other in imports(path):
        theirs, _, inside = other.partition(".")
        if theirs not in {"lensprep", "lenstrain"} or not inside:
            continue  # a package by itself has only its version
        if theirs == package:
            # Nobody but the command line itself and `python -m` goes in by the front door.
            everything = at_the_door or (allowed == "*" and not lies_in(other, "cli", package))
            fine = everything or lies_in(other, own, package)
        else:
            fine = package == "lenstrain" and lies_in(other, beyond, "lensprep")
        if not fine:
            wrong.append(other)
    return sorted({*wrong})


def test_every_component_is_in_the_table():
    components = {".".join(name.split(".")[:2]) for name in NAMES if name.count(".")}
    at_the_door = {f"{package}.{name}" for package in ("lensprep", "lenstrain")
                   for name in ("cli", "__main__")}  # fmt: skip
    assert components - at_the_door == {*MAY_IMPORT}


def test_a_file_imports_only_what_its_component_may():
    wrong = [f"{name} imports {other}" for name in PATHS for other in forbidden(PATHS[name])]
    assert not wrong, "\n".join(wrong)


def test_the_files_import_each_other_without_a_cycle():
    ours = {name_of(path): {*imports(path)} & NAMES for path in MODULES}
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_component_may_import_only_what_stands_above_it():
    above = dict.fromkeys(("lensprep", "lenstrain"), frozenset[str]())
    for component, allowed in MAY_IMPORT.items():
        package, _, own = component.partition(".")
        files = [more for name, more in ONE_FILE_MAY_ALSO.items() if lies_in(name, own, package)]
        others = {other.split(".")[0] for other in " ".join([allowed, *files]).split()} - {"*"}
        assert others <= above[package], component
        above[package] |= {own}


def test_lensprep_knows_nothing_of_lenstrain_or_torch():
    foreign = {"lenstrain", "torch", "torchvision", "sklearn", "optuna"}
    found = {name: packages(name) & foreign for name in NAMES if name.startswith("lensprep")}
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_the_contract_needs_numpy_the_standard_library_and_pyarrow():
    allowed = {"numpy", "pyarrow", "deflate", "lensprep", *sys.stdlib_module_names}
    found = {n: packages(n) - allowed for n in NAMES if n.startswith("lensprep.dataset")}
    assert found
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_a_component_that_is_a_folder_opens_with_names_alone():
    """Its ``__init__`` holds what it is for, imports and ``__all__``."""
    wrong = [
        f"{name_of(path)} defines {ast.unparse(node)[:80]}"
        for path in MODULES
        if path.name == "__init__.py" and path.parent.parent != ROOT
        for node in ast.parse(path.read_text()).body
        if not isinstance(node, ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_no_file_clock_log_or_click(name):
    path = PATHS[name]
    assert not packages(name) & TOUCHES_THE_WORLD
    calls = {n.func.id for n in ast.walk(ast.parse(path.read_text()))
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    assert not calls & {"open", "print", "input"}


def test_every_file_says_first_what_it_is_for():
    said = {name_of(p): ast.get_docstring(ast.parse(p.read_text())) or "" for p in MODULES}
    assert not [name for name, text in said.items() if len(text.partition("\n")[0]) <= 20]


def test_opening_a_dataset_loads_neither_torch_nor_numba_nor_matplotlib():
    heavy = {"torch", "numba", "click", "matplotlib", "scipy", "astropy"}
    code = f"import sys, lensprep.dataset; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
