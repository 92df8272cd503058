"""Readable manuals out of Python source, by parsing it, never by importing it.

One document a module: its docstring, then every documented class, method and function with its signature. What has
no docstring is left out, so a document is prose with code in it rather than the reverse.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
TOPICS = "stdlib/pydoc_data/topics.py"


def module_name(file_name: str) -> str:
    """``numpy/linalg/__init__.py`` -> ``numpy.linalg``; files of the standard library keep ``stdlib.`` in front."""
    parts = file_name.removesuffix(".py").split("/")
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


def manual_pages(file_name: str, source: str) -> Iterator[tuple[str, str]]:
    """(id, text) of the documents in one source file: none or one, or one a topic for ``pydoc_data.topics``.

    Raises SyntaxError where the file is not Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in other people's docstrings
        tree = ast.parse(source)
    if file_name == TOPICS:
        yield from _topics(tree)
        return
    name = module_name(file_name)
    parts = list(_documented(tree))
    summary = ast.get_docstring(tree)
    if summary or parts:
        title = name.removeprefix("stdlib.")
        head = f"{title}\n{'=' * len(title)}\n"
        yield name, "\n".join([head, *([summary + "\n"] if summary else []), *parts])


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for topic, text in ast.literal_eval(node.value).items():
                yield f"topics.{topic}", str(text).strip() + "\n"


def _documented(node: ast.AST) -> Iterator[str]:
    """Signature and docstring of everything documented in ``node``, in source order, classes with their methods."""
    for child in _definitions(node):
        docstring = ast.get_docstring(child)
        inner = list(_documented(child)) if isinstance(child, ast.ClassDef) else []
        if docstring or inner:
            yield _signature(child) + "\n"
            for text in ([docstring + "\n"] if docstring else []) + inner:
                yield "".join(f"    {line}" if line.strip() else "\n" for line in text.splitlines(keepends=True))


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """Classes and functions in the body of ``node``, also under ``if`` and ``try``; not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(child)


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}"
