"""List the mutants of a module: each changes one place of its syntax tree. Pure."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
REMOVABLE = (ast.Expr, ast.Raise, ast.AugAssign, ast.Delete, ast.Continue, ast.Break)
SKIPPED = ("__repr__", "check_integrity")
"""Functions that only describe, or only check in tests."""


@dataclass(frozen=True)
class Mutant:
    """Names one change of one module. The name stays the same when lines move."""

    module: str
    name: str
    index: int
    """The place of the change among all changes of the module."""


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Yield all mutants of the module's functions."""
    names: Counter[str] = Counter()
    for index, (name, _) in enumerate(_changes(ast.parse(source))):
        names[name] += 1
        suffix = f" #{names[name]}" if names[name] > 1 else ""
        yield Mutant(module, f"{module}.{name}{suffix}", index)


def mutated(source: str, index: int) -> ast.Module:
    """Return the tree of the module after the change `index`."""
    tree = ast.parse(source)
    for number, (_, apply) in enumerate(_changes(tree)):
        if number == index:
            apply()
            return ast.fix_missing_locations(tree)
    raise IndexError(f"there is no change {index}")


Change = tuple[str, Callable[[], None]]


def _changes(tree: ast.Module) -> Iterator[Change]:
    """Yield a name for each possible change, and a function that makes it in `tree`."""
    for where, function in _functions(tree, ""):
        nodes = (node for statement in function.body for node in ast.walk(statement))
        for node in (function, *nodes):
            for before, field, value in (*_replacements(node), *_removals(node)):
                yield f"{where}: {before}", _setter(node, field, value)


def _functions(node: ast.AST, where: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{where}{child.name}.")
        elif isinstance(child, ast.FunctionDef) and child.name not in SKIPPED:
            yield f"{where}{child.name}", child


def _setter(node: ast.AST, field: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, field, value)


def _replacements(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    """Yield a label, a field of `node`, and what the field becomes."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                other = COMPARISONS[type(op)]()
                yield _label(node, "compares with", other), "ops", [*ops[:i], other, *ops[i + 1 :]]
        case ast.BoolOp(op=op):
            other_op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield _label(node, "joins with", other_op), "op", other_op
        case ast.BinOp(op=arithmetic) if type(arithmetic) in ARITHMETIC:
            opposite = ARITHMETIC[type(arithmetic)]()
            yield _label(node, "computes with", opposite), "op", opposite
        case ast.Constant(value=bool() as flag):
            yield _label(node, "becomes", not flag), "value", not flag
        case ast.Constant(value=int() as number):
            yield _label(node, "becomes", number + 1), "value", number + 1
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield _label(test, "is negated", ""), "test", ast.UnaryOp(ast.Not(), deepcopy(test))
        case ast.comprehension(ifs=[condition, *others]):
            yield _label(condition, "is left out", ""), "ifs", others
        case ast.Return(value=ast.expr() as value) if not _is_empty(value):
            yield _label(node, "returns", None), "value", ast.Constant(None)
        case _:
            pass


def _removals(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    """Yield the same for each statement of a block below `node` that can be left out."""
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        if isinstance(statements, list):
            for i, statement in enumerate(statements):
                if _is_removable(statement):
                    yield (
                        _label(statement, "is left out", ""),
                        field,
                        [*statements[:i], ast.Pass(), *statements[i + 1 :]],
                    )


def _is_removable(statement: ast.stmt) -> bool:
    """Return whether the function may work without `statement`: neither a docstring nor a name's first value."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return False
        case ast.Assign(targets=targets):
            return all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        case _:
            return isinstance(statement, REMOVABLE)


def _is_empty(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _label(node: ast.AST, verb: str, other: object) -> str:
    change = type(other).__name__ if isinstance(other, ast.AST) else other
    text = " ".join(ast.unparse(node).split())
    return f"`{text[:90]}` {verb} {change}".rstrip()
