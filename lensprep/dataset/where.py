"""Row filters such as ``theta_e_arcsec >= 0.6 and psfsize_r < 1.4``, safe to take from a user.

The text is parsed by `ast` as a Python expression of a small grammar and evaluated by
`pyarrow.compute`; none of it is ever run as Python::

    expression  a or b, a and b, not a, (a)
    condition   a < b, <=, >, >=, ==, !=     also chained: 0.5 <= theta_e_arcsec < 1
                a in ("SIE", "SIS"), a not in (...)
                a is null, a is not null
    value       column, number, "text", true, false, + - * / of values, abs(a), sqrt(a), log10(a)

A comparison with null is null, as in SQL, and a row for which the whole is null is not kept.
A comparison with NaN is false (only ``!=`` is true). Division is of real numbers.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import ConfigError

_MAX_LENGTH: Final = 4096
_MAX_DEPTH: Final = 100
"""Limits of what is parsed: long or deeply nested text would exhaust the stack."""

_COMPARE: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_ARITHMETIC: Final[dict[type[ast.operator], str]] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
}
_FUNCTIONS: Final = ("abs", "sqrt", "log10")
_CONSTANTS: Final[dict[str, bool | None]] = {"null": None, "true": True, "false": False}
_Evaluate = Callable[[pa.Table], Any]
"""The value of an expression: a ChunkedArray, or a Scalar if it reads no column."""


@dataclass(frozen=True, slots=True)
class Where:
    """A compiled filter; make one with `compile_where`. It can be pickled and compared."""

    text: str
    columns: tuple[str, ...]
    """Columns it reads, in order of appearance."""

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Rows of ``table`` that are kept.

        Parameters
        ----------
        table : pyarrow.Table
            With at least ``self.columns``.

        Returns
        -------
        ndarray of bool, shape (rows,)
            False also where the expression is null.

        Raises
        ------
        ConfigError
            If a column is missing, or the types do not fit (text compared with a number).
        """
        check_columns(self, table.column_names)
        try:
            value = _compile(_parse(self.text), self.text, {})(table)
        except (pa.ArrowException, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"where {self.text!r} cannot be evaluated: {reason}.") from None
        if not isinstance(value, pa.ChunkedArray):  # an expression of constants alone
            value = pa.chunked_array([pa.repeat(value, table.num_rows)])
        if not pa.types.is_boolean(value.type):
            raise ConfigError(
                f"where {self.text!r} gives {value.type}, not true or false. "
                "Write a comparison, such as theta_e_arcsec >= 0.6."
            )
        return pc.fill_null(value, False).to_numpy().astype(bool)


def compile_where(text: str, known_columns: Iterable[str] | None = None) -> Where:
    """Parse a filter.

    Parameters
    ----------
    text : str
        The expression; see the head of this module for its grammar.
    known_columns : iterable of str, optional
        If given, every column must be one of these.

    Raises
    ------
    ConfigError
        If the text does not fit the grammar, or names an unknown column (the message names the
        nearest known one).
    """
    names: dict[str, None] = {}
    _compile(_parse(text), text, names)
    where = Where(text, tuple(names))
    if known_columns is not None:
        check_columns(where, known_columns)
    return where


def check_columns(where: Where, known_columns: Iterable[str]) -> None:
    """Raise ConfigError if ``where`` reads a column that is not known, naming the nearest."""
    known = list(known_columns)
    for name in where.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known[:12])}."
            raise ConfigError(f"where {where.text!r}: there is no column {name!r}.{hint}")


def _parse(text: str) -> ast.expr:
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"where is {len(text)} characters long; at most {_MAX_LENGTH} are read.")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise ConfigError(
            f"where {text!r} cannot be parsed: {reason}. Write it with ==, and, or, not, "
            'such as theta_e_arcsec >= 0.6 and lens_model == "SIE".'
        ) from None


def _compile(node: ast.expr, text: str, names: dict[str, None], depth: int = 0) -> _Evaluate:
    """What an expression is of a table; its columns are added to `names`.

    Raises
    ------
    ConfigError
        If it is not of the grammar.
    """
    if depth > _MAX_DEPTH:
        raise ConfigError(f"where {text[:60]!r}... is nested more than {_MAX_DEPTH} deep.")

    def of(child: ast.expr) -> _Evaluate:
        return _compile(child, text, names, depth + 1)

    match node:
        case ast.BoolOp(op=op, values=values):
            join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            parts = [of(value) for value in values]
            return lambda table: reduce(join, [_boolean(part(table)) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = of(operand)
            return lambda table: pc.invert(_boolean(inner(table)))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            inner, factor = of(operand), -1.0 if isinstance(sign, ast.USub) else 1.0
            return lambda table: pc.multiply(_real(inner(table)), factor)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            name, one, two = _ARITHMETIC[type(op)], of(left), of(right)
            # Real numbers throughout: integer columns would divide to integers and wrap round.
            return lambda table: pc.call_function(name, [_real(one(table)), _real(two(table))])
        case ast.Compare():
            return _compile_comparison(node, of, text)
        case ast.Call(func=ast.Name(id=name), args=[operand], keywords=[]) if name in _FUNCTIONS:
            inner = of(operand)
            return lambda table: pc.call_function(name, [_real(inner(table))])
        case ast.Name(id=name) if name in _CONSTANTS:
            return lambda table: pa.scalar(_CONSTANTS[name])
        case ast.Name(id=name):
            names[name] = None
            return lambda table: _column(table, name)
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return lambda table: pa.scalar(value)
    raise _refusal(node, text)


def _compile_comparison(
    node: ast.Compare, of: Callable[[ast.expr], _Evaluate], text: str
) -> _Evaluate:
    """A comparison; a chained one is the conjunction of its links."""
    operands = [node.left, *node.comparators]
    left, right = operands[:2]
    first = of(left)
    match node.ops:
        case [ast.Is() | ast.IsNot() as op]:
            if ast.unparse(right) not in ("null", "None"):
                raise _refusal(right, text)
            test = pc.is_null if isinstance(op, ast.Is) else pc.is_valid
            return lambda table: test(first(table))
        case [ast.In() | ast.NotIn() as op]:
            members = _members(right, text)

            def is_member(table: pa.Table) -> Any:
                value = first(table)
                equal = [_compare("equal", value, pa.scalar(v), left, right) for v in members]
                found = reduce(pc.or_kleene, equal, pa.scalar(False))
                return found if isinstance(op, ast.In) else pc.invert(found)

            return is_member
        case ops if all(type(each) in _COMPARE for each in ops):
            values = [first, *(of(each) for each in node.comparators)]

            def holds(table: pa.Table) -> Any:
                found = pairwise([value(table) for value in values])
                links = zip(ops, found, pairwise(operands), strict=True)
                return reduce(
                    pc.and_kleene,
                    [_compare(_COMPARE[type(op)], *pair, *nodes) for op, pair, nodes in links],
                )

            return holds
    raise _refusal(node, text)


def _compare(name: str, one: Any, two: Any, left: ast.expr, right: ast.expr) -> Any:
    try:
        return pc.call_function(name, [one, two])
    except pa.ArrowNotImplementedError:
        raise pa.ArrowTypeError(
            f"{ast.unparse(left)} is {one.type} and cannot be compared with {ast.unparse(right)}"
        ) from None


def _members(node: ast.expr, text: str) -> list[Any]:
    """Constants of the right side of ``in``."""
    if not isinstance(node, ast.Tuple | ast.List | ast.Set):
        raise _refusal(node, text)
    values = []
    for item in node.elts:
        try:
            value = ast.literal_eval(item)
        except (ValueError, TypeError):
            value = None
        if not isinstance(value, bool | int | float | str):
            raise _refusal(item, text)
        values.append(value)
    return values


def _refusal(node: ast.expr, text: str) -> ConfigError:
    return ConfigError(
        f"where {text!r}: {ast.unparse(node)!r} is not allowed. Allowed are columns, numbers, "
        f"text, + - * /, comparisons, in (...), is null, and, or, not, and {', '.join(_FUNCTIONS)}."
    )


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    encoded = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if encoded else column


def _real(value: Any) -> Any:
    if pa.types.is_string(value.type) or pa.types.is_boolean(value.type):
        raise pa.ArrowInvalid(f"arithmetic needs numbers, not {value.type}")
    return value.cast(pa.float64(), safe=False)


def _boolean(value: Any) -> Any:
    if pa.types.is_null(value.type):
        return value.cast(pa.bool_())
    if not pa.types.is_boolean(value.type):
        raise pa.ArrowInvalid(f"and, or, not need conditions, not {value.type}")
    return value
