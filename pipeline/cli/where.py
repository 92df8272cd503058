"""Row filters as the report prints them, in the form of pandas' ``query``: ``task == 'passkey' and length == 512``.

A filter is data from a file or a page, so it is never evaluated as Python: its syntax tree is walked, and only
comparisons of columns with values (``==``, ``<``, ``in``, ...), ``and``, ``or``, ``not`` and the four methods below
mean something. As in pandas a missing value fails every comparison but ``!=`` and ``not in``.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StudyError, suggestion

_LONGEST = 2000  # characters of a filter, and
_DEEPEST = 200  # parts within one another: far beyond what the report prints, far below what Python's stack holds
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[..., Any]]] = {
    ast.Eq: ("==", pc.equal),
    ast.NotEq: ("!=", pc.not_equal),
    ast.Lt: ("<", pc.less),
    ast.LtE: ("<=", pc.less_equal),
    ast.Gt: (">", pc.greater),
    ast.GtE: (">=", pc.greater_equal),
}
_ALLOWED = "column == value, !=, <, <=, >, >=, in [..], and, or, not, column.notna(), .isna(), .max(), .min()"


def select(table: pa.Table, expression: str) -> pa.Table:
    """The rows of ``table`` for which ``expression`` holds, in their order.

    Raises StudyError for a syntax that is no filter, a column the table does not have, or text compared with numbers.
    """
    return table.filter(_Filter(table, expression).mask())


class _Filter:
    """One filter on one table. Values are (kind, Arrow column or Python value); kind: text, number, truth or none."""

    def __init__(self, table: pa.Table, expression: str) -> None:
        self.table, self.text = table, expression

    def mask(self) -> Any:
        if len(self.text) > _LONGEST:
            raise self._error(f"{len(self.text)} characters (allowed: {_LONGEST})", "split it into several --where")
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes: it is text of a user, not code of ours
                tree = ast.parse(self.text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._syntax(error) from error
        return self._truth(tree.body, 0)

    def _truth(self, node: ast.expr, depth: int) -> Any:
        """Boolean column without nulls, one value per row."""
        if depth > _DEEPEST:
            raise self._error("nested too deeply", "write it flat")
        if isinstance(node, ast.BoolOp):
            join = pc.and_ if isinstance(node.op, ast.And) else pc.or_
            found = self._truth(node.values[0], depth + 1)
            for value in node.values[1:]:
                found = join(found, self._truth(value, depth + 1))
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            return pc.invert(self._truth(node.operand, depth + 1))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            join = pc.and_ if isinstance(node.op, ast.BitAnd) else pc.or_
            return join(self._truth(node.left, depth + 1), self._truth(node.right, depth + 1))
        if isinstance(node, ast.Compare):
            found = None
            sides = [node.left, *node.comparators]
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
                one = self._comparison(left, operator, right)
                found = one if found is None else pc.and_(found, one)
            return found
        if isinstance(node, ast.Call):
            return self._missing(node)
        if isinstance(node, ast.Name):
            kind, column = self._column(node)
            if kind != "truth":
                raise self._error(f"column {node.id!r} holds {_named(kind)}, no yes or no", f"{node.id} == ...")
            return pc.fill_null(column, False)
        raise self._error(f"{self._part(node)!r} is no condition", "compare a column with a value")

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Any:
        (kind, a) = self._value(left)
        if isinstance(operator, ast.In | ast.NotIn):
            found = self._one_of(left, right)
            return pc.invert(found) if isinstance(operator, ast.NotIn) else found
        if type(operator) not in _COMPARE:
            raise self._error(f"{self._part(left)!r}: 'is' is not known here", "use == or !=, .isna() or .notna()")
        sign, function = _COMPARE[type(operator)]
        (other, b) = self._value(right)
        self._comparable(left, kind, right, other)
        if not (_is_column(a) or _is_column(b)):
            raise self._error(f"{self._part(left)} {sign} {self._part(right)} names no column", "name one")
        if "truth" in (kind, other) and kind != other:
            a, b = (
                pc.cast(_columns(x, self.table), pa.int8()) if k == "truth" else x for k, x in ((kind, a), (other, b))
            )
        try:
            return pc.fill_null(_columns(function(a, b), self.table), isinstance(operator, ast.NotEq))
        except (pa.ArrowException, OverflowError) as error:
            raise self._error(
                f"{self._part(left)} {sign} {self._part(right)}: {error}", "compare other values"
            ) from error

    def _value(self, node: ast.expr) -> tuple[str, Any]:
        """(kind, column or value) of one side of a comparison."""
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, ast.Call):
            column, method = self._method(node)
            if method not in ("max", "min"):
                raise self._error(f".{method}() is no value", "it stands alone, or joined by and")
            kind, values = self._column(column)
            if kind not in ("number", "text"):
                raise self._error(f"column {column.id!r} holds {_named(kind)}", f"no .{method}() of it")
            return kind, (pc.max if method == "max" else pc.min)(values)
        value = self._constant(node)
        return _kind(value), value

    def _constant(self, node: ast.expr) -> Any:
        sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
        inner = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd) else node
        value = inner.value if isinstance(inner, ast.Constant) else ...
        if not isinstance(value, str | bool | int | float) or (inner is not node and _kind(value) != "number"):
            raise self._error(f"{self._part(node)!r} is no value", "a number, a text in quotes, True or False")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise self._error(f"{self._part(node)} holds half of a character, as no table does", "write all of it")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self._error(f"{self._part(node)!r} is larger than any number in a table", "a smaller one")
        return value if sign == 1 or isinstance(value, str) else -value

    def _one_of(self, left: ast.expr, right: ast.expr) -> Any:
        """Which rows of a column hold a value of a list: each is compared as ``==`` does it."""
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self._error(f"{self._part(right)!r} is no list", "in ['a', 'b']")
        if not isinstance(left, ast.Name):
            raise self._error(f"{self._part(left)!r} is no column", "column in ['a', 'b']")
        found = _columns(False, self.table)
        for item in right.elts:
            self._constant(item)
            found = pc.or_(found, self._comparison(left, ast.Eq(), item))
        return found

    def _missing(self, node: ast.Call) -> Any:
        column, method = self._method(node)
        if method not in ("notna", "isna"):
            raise self._error(f"{column.id}.{method}() is no condition", f"{column.id} == {column.id}.{method}()")
        values = self._column(column, known=False)[1]
        missing = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))
        return pc.invert(missing) if method == "notna" else missing

    def _method(self, node: ast.Call) -> tuple[ast.Name, str]:
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            known = called.attr in ("notna", "isna", "max", "min")
            if known and not node.args and not node.keywords:
                return called.value, called.attr
        raise self._error(f"{self._part(node)!r} cannot be called here", "column.notna(), .isna(), .max() or .min()")

    def _column(self, node: ast.Name, known: bool = True) -> tuple[str, Any]:
        names = self.table.column_names
        if node.id not in names:
            near = suggestion(node.id, names)
            listed = "" if near.startswith(" (") else f" Columns: {', '.join(names)}."
            raise StudyError(
                f"--where = {self.text!r}: unknown column {node.id!r}{near}{listed} Fix: name a column; text stands in "
                f"quotes: '{node.id}'"
            )
        column = self.table[node.id]
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        kind = _kind_of(column.type)
        if known and kind == "none":
            raise self._error(f"column {node.id!r} holds {column.type}, which has no order", f"{node.id}.notna()")
        return kind, column

    def _comparable(self, left: ast.expr, kind: str, right: ast.expr, other: str) -> None:
        if (kind == "text") != (other == "text"):
            a, b = f"{self._part(left)} is {_named(kind)}", f"{self._part(right)} is {_named(other)}"
            quoted = f"'{self._part(right)}'" if kind == "text" else self._part(right).strip("'\"")
            raise self._error(f"{a}, {b}: they cannot be compared", f"write {quoted}")

    def _part(self, node: ast.expr) -> str:
        text = ast.get_source_segment(self.text.strip(), node) or type(node).__name__
        return text if len(text) <= 60 else text[:57] + "..."

    def _syntax(self, error: BaseException) -> StudyError:
        single = "=" in self.text and not any(sign in self.text for sign in ("==", "!=", "<=", ">="))
        if single:
            name, _, value = self.text.partition("=")
            return self._error("one '=' compares nothing", f"{name.strip()} == '{value.strip()}' (a number: no quotes)")
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        return self._error(f"not a filter{where}", "check quotes and brackets")

    def _error(self, what: str, fix: str) -> StudyError:
        shown = self.text if len(self.text) <= 200 else self.text[:197] + "..."
        return StudyError(f"--where = {shown!r}: {what} (allowed: {_ALLOWED}). Fix: {fix}")


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "truth" if isinstance(value, bool) else "number"


def _kind_of(kind: pa.DataType) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "truth"
    return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "none"


def _named(kind: str) -> str:
    return {"text": "text", "number": "a number", "truth": "True or False", "none": "a list"}[kind]


def _is_column(value: Any) -> bool:
    return isinstance(value, pa.Array | pa.ChunkedArray)


def _columns(value: Any, table: pa.Table) -> Any:
    """``value`` as a column of the table's length."""
    if _is_column(value):
        return value
    scalar = value if isinstance(value, pa.Scalar) else pa.scalar(value)
    return pa.repeat(scalar, table.num_rows)
