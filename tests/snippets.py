"""The commands and programs that the documentation shows, as a test finds them.

for block in blocks(): block.place, block.language, block.text
for shown in commands(): shown.program, shown.arguments     every command of pages and of --help
parsed(shown).params                                        as Click reads it, or UsageError
check_settings(parsed(shown))                               keys of --set, files of --config
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click

from lensprep.cli import main as lensprep
from lensprep.configfile import load_config
from lenstrain.cli import main as lenstrain

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PROGRAMS: dict[str, click.Command] = {"lensprep": lensprep, "lenstrain": lenstrain}
_FENCE = re.compile(r"\s*(`{3,})\s*(\w*)")
_VARIABLE = re.compile(r"[A-Z_]+=\S*")
_SHELL = ("sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Shown:
    """One simple command, as it is shown."""

    place: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def page(self) -> str:
        return self.place.partition(":")[0]

    @property
    def program(self) -> str:
        """``lensprep`` or ``lenstrain`` however it is started, else the first word."""
        return self._split()[0]

    @property
    def arguments(self) -> list[str]:
        return self._split()[1]

    def _split(self) -> tuple[str, list[str]]:
        words = list(self.words)
        while words and _VARIABLE.fullmatch(words[0]):
            words.pop(0)
        if words and Path(words[0]).name in ("python", "torchrun") and "-m" in words:
            module = words.index("-m") + 1
            if words[module] in PROGRAMS:
                return words[module], words[module + 1 :]
        return (Path(words[0]).name, words[1:]) if words else ("", [])

    @property
    def is_ours(self) -> bool:
        return self.program in PROGRAMS and "_COMPLETE=" not in self.words[0]


@cache
def blocks() -> tuple[Block, ...]:
    """Every fenced block of README and docs, in the order of the pages."""
    return tuple(block for page in PAGES for block in _blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    name, begun, lines = page.relative_to(ROOT).as_posix(), None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if begun is None and fence:
            begun, language, lines = number, fence[2], []
        elif begun is not None and line.strip() == "```":
            yield Block(name, begun, language, "\n".join(lines) + "\n")
            begun = None
        elif begun is not None:
            lines.append(line)


@cache
def commands() -> tuple[Shown, ...]:
    """Every command that pages show, and then the examples in the help of both programs."""
    shown = [
        Shown(block.place, words)
        for block in blocks()
        if block.language in _SHELL
        for words in simple_commands(block.text)
    ]
    for name, program in PROGRAMS.items():
        shown += _examples(name, program)
    return tuple(shown)


def _examples(path: str, command: click.Command) -> list[Shown]:
    text = (command.help or "").partition("Example:\n")[2].partition("\n\n")[0]
    shown = [Shown(f"{path} --help", words) for words in simple_commands(text)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            shown += _examples(f"{path} {name}", child)
    return shown


def simple_commands(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of a shell script without control flow, split where the shell would."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in (*lexer, ";"):
            if words and words[-1] == ">":
                words.pop()  # and the file that the output goes to
            elif word in (";", "&&", "||", "|", "&"):
                if words:
                    yield tuple(words)
                words = []
            else:
                words.append(word)


def parsed(shown: Shown) -> click.Context:
    """The context of the command at the end, its parameters checked.

    Raises
    ------
    click.UsageError
        If there is no such command or option, or a value is none that the option takes.
    """
    command, words = PROGRAMS[shown.program], shown.arguments
    context = click.Context(command, info_name=shown.program)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    return command.make_context(context.info_name or "", list(words), parent=context.parent)


def check_settings(context: click.Context) -> None:
    """Whether the configuration and the keys of ``--set`` fit the command; ConfigError if not."""
    from lenstrain.audit.config import AuditConfig
    from lenstrain.config import Config
    from lenstrain.evaluation.options import EvaluationOptions
    from lenstrain.probes.options import ProbeOptions
    from lenstrain.publish.facts import About
    from lenstrain.scoring.mine import MiningOptions
    from lenstrain.sweep.config import load_plan

    kinds: dict[str, type] = {
        "audit": AuditConfig,
        "evaluate": EvaluationOptions,
        "probe": ProbeOptions,
        "publish": About,
        "mine": MiningOptions,
    }
    given = context.params
    path, overrides = given.get("config_path"), given.get("overrides", ())
    if path is None and not overrides:
        return
    path = None if path is None else ROOT / path if (ROOT / path).exists() else path
    if context.info_name == "sweep":
        load_plan(path, overrides)
    else:
        load_config(kinds.get(context.info_name or "", Config), path, overrides)
