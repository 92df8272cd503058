"""Which Python sources a stage's result comes from, to notice code that changed without its ``code_version``.

The import closure: the module that defines the stage, what it imports (inside functions too, for type checking not)
or names as ``"module:name"``, what that imports, and so on, among the packages a stage may use. A plug-in is noticed
beside it, where it registers something with a module of the closure.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGES = ("stages", "model", "cluster")
_IMPORT = re.compile(r"^[ \t]*(?:from ([\w.]+) import (\([^)]*\)|[^\n]*)|import ([^\n]*))", re.M)
_NAMED = re.compile(r'"(\.?[\w.]*\w):\w+"')
_REGISTER = re.compile(r"^def register\(", re.M)


@functools.cache
def source_digest(module: str) -> str:
    """16 hex digits over names and contents of the closure's files. Imports nothing."""
    return _digest(closure(module))


def plugin_digests(module: str, plugins: Iterable[str]) -> dict[str, str]:
    """Plug-in -> digest of its own sources, for those that register something with the stage that ``module`` defines:
    they import a module of its closure that has a ``register``."""
    registries = {name for name, file in closure(module).items() if _REGISTER.search(file.read_text(encoding="utf-8"))}
    files = {plugin: closure(plugin, ()) for plugin in plugins}
    return {
        plugin: _digest(own)
        for plugin, own in files.items()
        if any(registries.intersection(_imported(file)) for file in own.values())
    }


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def closure(module: str, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """The modules that ``module`` needs, itself first, by name; packages stand for their ``__init__``. ``packages``:
    where beside its own top package they are looked for."""
    tops = {*packages, module.partition(".")[0]}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] not in tops or (file := _file(name)) is None:
            continue
        found[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        named = (f"{package}{place}" if place.startswith(".") else place for place in _named(file))
        waiting += [name.rpartition(".")[0], *_imported(file), *named]
    return found


@functools.cache
def _file(name: str) -> Path | None:
    """None where there is no such module: the name of a class, say, not of a submodule. Found by path, because a
    package that were asked for its parts would be imported, and torch with it."""
    parent, _, last = name.rpartition(".")
    if not parent:
        spec = importlib.util.find_spec(name)
        return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None
    above = _file(parent)
    if above is None or above.name != "__init__.py":
        return None
    module, package = above.parent / f"{last}.py", above.parent / last / "__init__.py"
    return package if package.is_file() else module if module.is_file() else None


@functools.cache
def _imported(file: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_imports(file.read_text(encoding="utf-8"))))


@functools.cache
def _named(file: Path) -> tuple[str, ...]:
    """Modules of ``"module:name"``; a leading dot: of the file's own package."""
    return tuple(dict.fromkeys(_NAMED.findall(file.read_text(encoding="utf-8"))))


def _imports(text: str) -> Iterator[str]:
    """Dotted names that the source imports; of ``from a import b`` both a and a.b, one of which is a module."""
    for line in _IMPORT.finditer(_without_type_checking(text)):
        package, names, plain = line.groups()
        for part in (names or plain).strip("()").split(","):
            name = part.split("#")[0].strip().split(" as ")[0].strip()
            if package:
                yield package
                yield f"{package}.{name}"
            else:
                yield name


def _without_type_checking(text: str) -> str:
    return re.sub(r"^if TYPE_CHECKING:\n(?:[ \t]+[^\n]*\n|\n)*", "", text, flags=re.M)
