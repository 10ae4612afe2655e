"""Row filters such as ``theta_e_arcsec >= 0.6 and psfsize_r < 1.4``, safe to take from a user.

The text is parsed by `ast` as a Python expression of a small grammar and evaluated by
`pyarrow.compute`; nothing of it is ever run as Python::

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
            value = _evaluate(_parse(self.text), table)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
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
    tree = _parse(text)
    names: dict[str, None] = {}
    _check(tree, text, names, 0)
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


def _check(node: ast.expr, text: str, names: dict[str, None], depth: int) -> None:
    """Refuse what the grammar lacks and collect the columns."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"where {text[:60]!r}... is nested more than {_MAX_DEPTH} deep.")
    children: list[ast.expr]
    match node:
        case ast.BoolOp(values=children):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            children = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            children = [left, right]
        case ast.Compare():
            children = _compare_operands(node, text)
        case ast.Call(func=ast.Name(id=name), args=[operand], keywords=[]) if name in _FUNCTIONS:
            children = [operand]
        case ast.Name(id=name):
            children = []
            if name not in _CONSTANTS:
                names[name] = None
        case ast.Constant(value=bool() | int() | float() | str() | None):
            children = []
        case _:
            raise _refusal(node, text)
    for child in children:
        _check(child, text, names, depth + 1)


def _compare_operands(node: ast.Compare, text: str) -> list[ast.expr]:
    """Operands of a comparison that are expressions themselves."""
    operands = [node.left]
    for op, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, ast.Is | ast.IsNot):
            if not _is_null(right):
                raise _refusal(right, text)
        elif isinstance(op, ast.In | ast.NotIn):
            _members(right, text)
        else:
            operands.append(right)
    if len(node.ops) > 1 and any(type(op) not in _COMPARE for op in node.ops):
        raise _refusal(node, text)
    return operands


def _is_null(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="null") | ast.Constant(value=None):
            return True
    return False


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


def _evaluate(node: ast.expr, table: pa.Table) -> Any:
    """Value of a checked expression: a ChunkedArray, or a Scalar if it reads no column."""
    match node:
        case ast.BoolOp(op=op, values=values):
            join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            return _fold(join, [_boolean(_evaluate(value, table)) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_boolean(_evaluate(operand, table)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return pc.negate(_real(_evaluate(operand, table)))
        case ast.UnaryOp(operand=operand):
            return _real(_evaluate(operand, table))
        case ast.BinOp(left=left, op=op, right=right):
            # Real numbers throughout: integer columns would divide to integers and wrap round.
            operands = _real(_evaluate(left, table)), _real(_evaluate(right, table))
            return pc.call_function(_ARITHMETIC[type(op)], operands)
        case ast.Compare():
            return _compare(node, table)
        case ast.Call(func=ast.Name(id=name), args=[operand]):
            return pc.call_function(name, [_real(_evaluate(operand, table))])
        case ast.Name(id=name) if name in _CONSTANTS:
            return pa.scalar(_CONSTANTS[name])
        case ast.Name(id=name):
            column = table.column(name)
            encoded = pa.types.is_dictionary(column.type)
            return column.cast(column.type.value_type) if encoded else column
        case ast.Constant(value=value):
            return pa.scalar(value)
    raise _refusal(node, ast.unparse(node))  # pragma: no cover - _check has refused it


def _compare(node: ast.Compare, table: pa.Table) -> Any:
    """A comparison; a chained one is the conjunction of its links."""
    links = []
    left_node, left = node.left, _evaluate(node.left, table)
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        try:
            right, link = _link(left, op, right_node, table)
        except pa.ArrowNotImplementedError:
            raise pa.ArrowTypeError(
                f"{ast.unparse(left_node)} is {left.type} and cannot be compared with "
                f"{ast.unparse(right_node)}"
            ) from None
        links.append(pc.invert(link) if isinstance(op, ast.IsNot | ast.NotIn) else link)
        left_node, left = right_node, right
    return _fold(pc.and_kleene, links)


def _link(left: Any, op: ast.cmpop, right_node: ast.expr, table: pa.Table) -> tuple[Any, Any]:
    """What is compared with, if it has a value of its own, and the outcome."""
    if isinstance(op, ast.Is | ast.IsNot):
        return None, pc.is_null(left)
    if isinstance(op, ast.In | ast.NotIn):
        equal = [pc.equal(left, pa.scalar(v)) for v in _members(right_node, "")]
        return None, _fold(pc.or_kleene, equal) if equal else pa.scalar(False)
    right = _evaluate(right_node, table)
    return right, pc.call_function(_COMPARE[type(op)], [left, right])


def _fold(join: Callable[[Any, Any], Any], values: list[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = join(result, value)
    return result


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
