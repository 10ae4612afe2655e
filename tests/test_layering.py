"""Who may import whom, read from the code: the lines that the design draws."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "lensprep").rglob("*.py"), *(ROOT / "lenstrain").rglob("*.py")])

OPEN_TO_LENSTRAIN = (
    "lensprep.dataset",
    "lensprep.errors",
    "lensprep.configfile",
    "lensprep.kernel",
    "lensprep.tables",
    "lensprep.terminal",
)
PURE = [
    "lensprep/convert/placement.py",
    "lensprep/convert/account.py",
    "lensprep/source/contract.py",
    "lensprep/dataset/layout.py",
    "lensprep/dataset/rgb.py",
    "lenstrain/data/order.py",
    "lenstrain/training/schedule.py",
    "lenstrain/sweep/space.py",
    "lenstrain/monitor/diagnosis.py",
    "lenstrain/evaluation/metrics.py",
    "lenstrain/evaluation/intervals.py",
    "lenstrain/evaluation/clustered.py",
    "lenstrain/evaluation/rates.py",
    "lenstrain/evaluation/threshold.py",
    "lenstrain/evaluation/selection/axes.py",
    "lenstrain/evaluation/selection/fit.py",
    "lenstrain/evaluation/selection/function.py",
    "lenstrain/evaluation/selection/population.py",
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


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_lensprep_knows_nothing_of_lenstrain_or_torch(path):
    top = {name.split(".")[0] for name in imports(path)}
    if name_of(path).startswith("lensprep"):
        assert not top & {"lenstrain", "torch", "torchvision", "sklearn", "optuna"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_lenstrain_uses_only_the_contract_of_lensprep(path):
    if not name_of(path).startswith("lenstrain"):
        return
    for name in imports(path):
        if name.startswith("lensprep.") and name != "lensprep.__version__":
            assert name.startswith(OPEN_TO_LENSTRAIN), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if "dataset" in p.parts], ids=name_of)
def test_the_contract_needs_numpy_the_standard_library_and_pyarrow(path):
    allowed = {"numpy", "pyarrow", "boto3", "botocore", "deflate", "lensprep"}
    top = {name.split(".")[0] for name in imports(path)}
    assert top <= allowed | set(sys.stdlib_module_names)
    for name in imports(path):
        if name.startswith("lensprep"):
            assert name.startswith(("lensprep.dataset", "lensprep.errors"))


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_no_file_clock_log_or_click(name):
    path = ROOT / name
    top = {imported.split(".")[0] for imported in imports(path)}
    assert not top & TOUCHES_THE_WORLD
    calls = {n.func.id for n in ast.walk(ast.parse(path.read_text()))
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    assert not calls & {"open", "print", "input"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_file_says_first_what_it_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert len(docstring.splitlines()[0]) > 20


def test_opening_a_dataset_loads_neither_torch_nor_numba():
    code = "import sys, lensprep.dataset; print({'torch', 'numba', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
