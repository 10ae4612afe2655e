"""Generate from the code: the pages of commands and settings, and the tables of components.

Run `make docs`; a test fails while a generated page is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"


COMPLETION = """\
## Completion by the shell

The Tab key completes commands, options, choices, and names of files and folders; not those of
objects in a store, which would take a request each time. Put these lines into `~/.bashrc`
(bash 4.4 or later):

```sh
eval "$(_LENSPREP_COMPLETE=bash_source lensprep)"
eval "$(_LENSTRAIN_COMPLETE=bash_source lenstrain)"
```

into `~/.zshrc`, after `compinit`:

```sh
eval "$(_LENSPREP_COMPLETE=zsh_source lensprep)"
eval "$(_LENSTRAIN_COMPLETE=zsh_source lenstrain)"
```

or, once, for fish:

```sh
_LENSPREP_COMPLETE=fish_source lensprep > ~/.config/fish/completions/lensprep.fish
_LENSTRAIN_COMPLETE=fish_source lenstrain > ~/.config/fish/completions/lenstrain.fish
```"""


def cli_reference() -> str:
    """The help of every command of both programs, as Markdown."""
    from lensprep.cli import main as lensprep
    from lenstrain.cli import main as lenstrain

    parts = ["# Commands", "Generated from `--help` by `make docs`.", _statuses(), COMPLETION]
    for name, group in (("lensprep", lensprep), ("lenstrain", lenstrain)):
        parts += _commands(name, group, None)
    return "\n\n".join(parts) + "\n"


def _statuses() -> str:
    """Table of the exit statuses and the commands that end with them."""
    from lensprep.store.interrupts import INTERRUPTED, PREEMPTED
    from lenstrain.audit.finding import EXIT_CODES

    audit = "`lenstrain audit`"
    told = {
        EXIT_CODES["GO"]: ("success; the verdict GO of an audit", "all"),
        click.ClickException.exit_code: (
            "an error, told in one line; or what was checked is not sound",
            "all; so `lensprep check`, `lensprep verify`, `lenstrain cache verify`",
        ),
        click.UsageError.exit_code: ("a mistake in the command line; nothing was done", "all"),
        EXIT_CODES["CONDITIONAL"]: ("CONDITIONAL: no blocker failed, but a warning", audit),
        EXIT_CODES["NO-GO"]: ("NO-GO: a blocker failed or was not run", audit),
        PREEMPTED: (
            "stopped by SIGTERM with the state saved: repeat the command with `--resume` (a sweep: "
            "as it was)",
            "`lenstrain train`, `lenstrain sweep`",
        ),
        INTERRUPTED: (
            "stopped by Ctrl-C, elsewhere by SIGTERM too; finished work is kept if a command can "
            "resume",
            "all",
        ),
    }  # fmt: skip
    rows = [f"| {status} | {what} | {who} |" for status, (what, who) in sorted(told.items())]
    return "\n".join(
        ["## Exit statuses", "", "| status | meaning | commands |", "|---:|---|---|", *rows]
    )


def _commands(path: str, command: click.Command, parent: click.Context | None) -> list[str]:
    name = path.split()[-1]
    context = click.Context(command, parent, info_name=name, **command.context_settings)
    context.max_content_width = context.terminal_width = 100
    parts = [f"## {path}", "```text\n" + command.get_help(context).strip() + "\n```"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                parts += _commands(f"{path} {name}", child, context)
    return parts


def config_reference() -> str:
    """Every key of the training configuration with default, type and meaning, as Markdown."""
    from lenstrain.config import Config

    parts = [
        "# Training configuration",
        "Generated from `lenstrain/config.py` by `make docs`. Set a key in a TOML file (`[optim]`, "
        "`lr = 3e-4`) or with `--set optim.lr=3e-4`, which takes precedence. An unknown key is an "
        "error.",
    ]
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        parts.append(_section(field.name, hints[field.name]))
    return "\n\n".join(parts) + "\n"


def evaluation_reference() -> str:
    """Every option of the evaluation with default, type and meaning, as Markdown."""
    from lenstrain.evaluation.options import EvaluationOptions

    return _options("Evaluation options", EvaluationOptions, "evaluate", "resamples=2000")


def probe_reference() -> str:
    """Every option of the probes with default, type and meaning, as Markdown."""
    from lenstrain.probes.options import ProbeOptions

    return _options("Probe options", ProbeOptions, "probe", "per_class=500")


def _options(title: str, options: type, command: str, example: str) -> str:
    file = options.__module__.replace(".", "/")
    parts = [
        f"# {title}",
        f"Generated from `{file}.py` by `make docs`. Set an option with "
        f"`lenstrain {command} ... --set {example}`. An unknown key is an error.",
        _section("", options),
    ]
    return "\n\n".join(parts) + "\n"


def _section(name: str, section: Any) -> str:
    meanings = _docstrings(section)
    hints = typing.get_type_hints(section)
    lines = [f"## [{name}]", ""] if name else []
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    prefix = f"{name}." if name else ""
    for field in dataclasses.fields(section):
        default = field.default
        if default is dataclasses.MISSING:
            factory = field.default_factory
            default = factory() if factory is not dataclasses.MISSING else "required"
        shown = "not set" if default is None else f"`{default!r}`".replace("'", '"')
        kind = _type_name(hints[field.name])
        lines.append(f"| `{prefix}{field.name}` | {kind} | {shown} | {meanings[field.name]} |")
    return "\n".join(lines)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    return (hint.__name__ if isinstance(hint, type) else str(hint)).replace("|", "or")


def _docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            words = " ".join(str(text.value.value).split())
            found[field.target.id] = words.replace("``", "`").replace("|", "\\|")
    return found


def audit_items() -> str:
    """The how-to of the audit with tables of the checklist, as the default thresholds have it."""
    from lenstrain.audit.checklist import CHECKLIST
    from lenstrain.audit.config import AuditConfig

    config = AuditConfig()
    what = ["| Item | Weight | Measured | Passes if |", "|---|---|---|---|"]
    why = ["| Item | Why it matters | If it fails |", "|---|---|---|"]
    for item in CHECKLIST:
        weight = "P" if item.publish else item.severity[0].upper()
        measures, rule = (item.filled(text, config) for text in (item.measures, item.rule))
        what.append(f"| `{item.name}` | {weight} | {measures} | {rule or 'reported'} |")
        why.append(f"| `{item.name}` | {item.why} | {item.remedy or 'It is for you to weigh.'} |")
    tables = "\n".join(["", *what, "", *why])
    return _filled(ROOT / "docs" / "how-to" / "audit.md", "items", f"{tables}\n")


def contributing() -> str:
    """CONTRIBUTING.md with a table of each package's components: purpose and imports."""
    tables = "".join(_components(package) for package in ("lensprep", "lenstrain"))
    return _filled(ROOT / "CONTRIBUTING.md", "components", tables)


def input_reference() -> str:
    """The page of the input with the table of columns: the contract's own words."""
    from lensprep.source.survey import DECALS_SURVEY

    lines = [
        "",
        "| column | type | unit | null | required | leaks | lenses only | plausible | meaning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for column in DECALS_SURVEY.known_columns:
        marks = ["yes" * is_so for is_so in (column.required, column.leaks, column.lenses_only)]
        cells = (f"`{column.name}`", str(column.type), column.unit, column.null_rule, *marks)
        lines.append(f"| {' | '.join((*cells, column.limits, column.meaning))} |")
    return _filled(FOLDER / "input.md", "columns", "\n".join(lines) + "\n")


def _filled(page: Path, name: str, tables: str) -> str:
    """A page with what is generated between its two marks of this name."""
    begin, end = f"<!-- {name}: made by `make docs` -->\n", f"<!-- end of {name} -->"
    before, rest = page.read_text().split(begin)
    return f"{before}{begin}{tables}\n{end}{rest.split(end)[1]}"


def _components(package: str) -> str:
    sys.path.insert(0, str(ROOT))
    from tests.test_layering import MAY_IMPORT

    lines = ["", f"| `{package}/` | holds | may import of its own package |", "|---|---|---|"]
    for name, allowed in MAY_IMPORT.items():
        if name.split(".")[0] == package:
            path = ROOT.joinpath(*name.split("."))
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            purpose = (ast.get_docstring(ast.parse(source.read_text())) or "").splitlines()[0]
            names = ", ".join(f"`{other}`" for other in allowed.split())
            names = "all but `cli`" if allowed == "*" else names
            lines.append(f"| `{path.name}{'/' * path.is_dir()}` | {purpose} | {names} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write all pages; with --check, only report whether they are stale."""
    stale = False
    pages = (
        (FOLDER / "cli.md", cli_reference()),
        (FOLDER / "config.md", config_reference()),
        (FOLDER / "evaluation.md", evaluation_reference()),
        (FOLDER / "probe.md", probe_reference()),
        (ROOT / "docs" / "how-to" / "audit.md", audit_items()),
        (FOLDER / "input.md", input_reference()),
        (ROOT / "CONTRIBUTING.md", contributing()),
    )
    for path, text in pages:
        if path.exists() and path.read_text() == text:
            continue
        stale = True
        if "--check" not in sys.argv:
            path.write_text(text)
            print(f"wrote {path}")
        else:
            print(f"{path} is stale; run `make docs`", file=sys.stderr)
    return int(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
