"""Source code as it enters a run's hash: what is computed counts, how it is written down doesn't.

Comments, blank lines, docstrings, line breaks and the width of an indentation say nothing; and the
hash is the same under every version of Python, whose syntax trees and unparsed texts are not.
"""

import ast
import hashlib
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = {"site-packages", "dist-packages"}
TORCH = ("torch", "torchvision", "timm")  # their version is recorded, and compared
HOUSE = ("models", "slimming", "utils")  # our own rooms, each hashed only as far as its own folder
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)
# From Python 3.12 on an f-string is several tokens, from 3.14 on a template, too.
PARTED = tuple(getattr(tokenize, f"{kind}STRING_START", -1) for kind in "FT")
JOINED = tuple(getattr(tokenize, f"{kind}STRING_END", -1) for kind in "FT")


def source_of(target: Any) -> dict[str, str]:
    """{"source": its hash}, as it stands in a run's hash; {} for what is a part of torch."""
    return {} if target.__module__.partition(".")[0] in TORCH else {"source": source_hash(target)}


@lru_cache(maxsize=1024)  # of the code this process loaded, whatever happens to the files
def source_hash(target: Any) -> str:
    """SHA-256 of the file that defines `target` and of all it imports that nobody installed.

    Of our own files those count that are in names: networks, methods, and the target's own folder.
    What lies in other rooms is watched by `utils.runs.environment`, and would otherwise change
    every name whenever anything is tidied up.
    """
    if inspect.getsourcefile(target) is None:
        return hashlib.sha256(repr(target).encode()).hexdigest()
    found: dict[str, tuple[str, ...]] = {}
    waiting = [target.__module__]
    while waiting:
        name = waiting.pop()
        if name in found or (file := _file_of(name)) is None:
            continue
        if name != target.__module__ and not _counts(file, target.__module__.rpartition(".")[0]):
            continue
        found[name], imported = _read(name, file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [whole for level, base in imported for whole in _whole(level, base, package)]
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update("\0".join([*found[name], ""]).encode())
    return digest.hexdigest()


def _file_of(name: str) -> Path | None:
    """Where a module's source lies, whether it is loaded or not; nothing is imported for this."""
    if (module := sys.modules.get(name)) is not None:
        file = getattr(module, "__file__", None) or ""
        return Path(file) if file.endswith(".py") else None
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # a module that was made by hand has no spec
        return None
    if spec is None or not (spec.origin or "").endswith(".py") or not _is_own(Path(spec.origin)):
        return None
    if not rest:
        return Path(spec.origin)
    base = Path(spec.origin).parent.joinpath(*rest)
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _counts(file: Path, package: str) -> bool:
    """Whether what a file says is part of what a module in `package` is made of."""
    if not _is_own(file):
        return False
    path = file.resolve()
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in HOUSE:
        return True
    room = ".".join(path.relative_to(ROOT).parent.parts)
    return room in (package, "models", "slimming.methods") or room.startswith("models.")


def _is_own(file: Path) -> bool:
    """Neither installed nor Python's."""
    path = file.resolve()
    python = Path(io.__file__).resolve().parent
    return not INSTALLED & set(path.parts) and not path.is_relative_to(python)


@lru_cache(maxsize=1024)  # the same: a class that is named later has parts in common
def _read(name: str, file: Path) -> tuple[tuple[str, ...], tuple]:
    """(a module's statements as words, its imports as (level, dotted name))."""
    source = file.read_bytes()
    return tuple(statements(source)), tuple(_imports(ast.parse(source)))


def statements(source: bytes) -> Iterator[str]:
    """The words of a program: those that Python computes with, and where a block begins and ends.

    Raises:
        ValueError: it is no Python.
    """
    word: list[str] = []  # of one logical line
    depth, begin = 0, (0, 0)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = io.TextIOWrapper(io.BytesIO(source), encoding).read()  # any end of a line is \n
        lines = text.split("\n")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in PARTED:
                depth += 1
                begin = token.start if depth == 1 else begin
            elif token.type in JOINED:
                depth -= 1
                if not depth:
                    word.append(_slice(lines, begin, token.end))
            elif depth or token.type in SILENT:
                continue
            elif token.type in (tokenize.INDENT, tokenize.DEDENT):
                yield ">" if token.type == tokenize.INDENT else "<"
            elif token.type == tokenize.NEWLINE:
                if not all(_is_text(part) for part in word):  # else a docstring
                    yield from (*word, "\n")
                word = []
            else:
                word.append(token.string)
    except (tokenize.TokenError, SyntaxError, UnicodeError) as error:
        raise ValueError(f"a module can't be read as Python: {error}") from error


def _slice(lines: list[str], begin: tuple[int, int], end: tuple[int, int]) -> str:
    (first, start), (last, stop) = begin, end
    if first == last:
        return lines[first - 1][start:stop]
    return "\n".join([lines[first - 1][start:], *lines[first : last - 1], lines[last - 1][:stop]])


def forget() -> None:
    """Read everything anew, as another process would."""
    source_hash.cache_clear()
    _read.cache_clear()


def _is_text(word: str) -> bool:
    return word.lstrip("rRuUbBfF")[:1] in ("'", '"')


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(dots in front, name) of what may be modules; of `from a import b`, a.b, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                yield node.level, ".".join(filter(None, [base, alias.name]))


def _whole(level: int, name: str, package: str) -> Iterator[str]:
    """The absolute name, and every package on the way to it."""
    if level:
        parts = package.split(".")
        name = ".".join([*parts[: len(parts) - level + 1], *filter(None, [name])])
    while name:
        yield name
        name = name.rpartition(".")[0]
