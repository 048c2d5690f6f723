"""A user's own code as it enters a run's hash: statements count, comments and blank lines don't."""

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INSTALLED = {"site-packages", "dist-packages"}


def source_hash(target: Any) -> str:
    """Of the file that defines `target` and of all it imports from the same folder or below."""
    path = inspect.getsourcefile(target)
    if path is None:
        return hashlib.sha256(repr(target).encode()).hexdigest()
    name = target.__module__
    root = Path(path).resolve().parents[name.count(".")]
    trees: dict[str, ast.Module] = {}
    waiting = [name]
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if name in trees or not file.endswith(".py") or (trees and not _below(root, file)):
            continue
        trees[name] = ast.parse(Path(file).read_text(encoding="utf-8"))
        waiting += _imports(trees[name], sys.modules[name].__package__ or "")
    text = "".join(ast.dump(trees[name]) for name in sorted(trees))
    return hashlib.sha256(text.encode()).hexdigest()


def _below(root: Path, file: str) -> bool:
    """What pip installed there isn't the user's."""
    path = Path(file).resolve()
    return path.is_relative_to(root) and not INSTALLED & set(path.parts)


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names of what may be modules; of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
