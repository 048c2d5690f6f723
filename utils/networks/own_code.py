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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = {"site-packages", "dist-packages"}
TORCH = ("torch", "torchvision")  # their version is recorded, and compared
HOUSE = ("models", "slimming", "utils")  # our own rooms, each hashed only as far as its own folder
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)
# From Python 3.12 on an f-string is several tokens, from 3.14 on a template, too.
PARTED = tuple(getattr(tokenize, f"{kind}STRING_START", -1) for kind in "FT")
JOINED = tuple(getattr(tokenize, f"{kind}STRING_END", -1) for kind in "FT")


def source_of(target: Any) -> dict[str, str]:
    """{"source": its hash}, as it stands in a run's hash; {} for what is a part of torch."""
    return {} if target.__module__.partition(".")[0] in TORCH else {"source": source_hash(target)}


def source_hash(target: Any) -> str:
    """SHA-256 of the file that defines `target` and of all it imports that nobody installed.

    A file of ours counts with its own folder only: what lies in other rooms is watched by
    `utils.runs.environment`, and would otherwise change every name whenever anything is tidied up.
    """
    if inspect.getsourcefile(target) is None:
        return hashlib.sha256(repr(target).encode()).hexdigest()
    found: dict[str, tuple[str, ...]] = {}
    waiting = [target.__module__]
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if name in found or not file.endswith(".py") or not _counts(name, file, target.__module__):
            continue
        path = Path(file)
        facts = path.stat()
        found[name], imported = _read(path, facts.st_mtime_ns, facts.st_size)
        package = sys.modules[name].__package__ or ""
        waiting += [whole for level, base in imported for whole in _whole(level, base, package)]
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update("\0".join([*found[name], ""]).encode())
    return digest.hexdigest()


def _counts(name: str, file: str, start: str) -> bool:
    """Whether a module belongs to what `start` is made of."""
    if name == start:
        return True
    path = Path(file).resolve()
    if INSTALLED & set(path.parts) or path.is_relative_to(Path(io.__file__).resolve().parent):
        return False
    ours = path.relative_to(ROOT).parts[0] in HOUSE if path.is_relative_to(ROOT) else False
    return not ours or name.rpartition(".")[0] == start.rpartition(".")[0]


@lru_cache(maxsize=256)
def _read(path: Path, modified: int, size: int) -> tuple[tuple[str, ...], tuple]:
    """(the file's statements as words, its imports as (level, dotted name))."""
    source = path.read_bytes()
    return tuple(statements(source)), tuple(_imports(ast.parse(source)))


def statements(source: bytes) -> Iterator[str]:
    """The words of a program: those that Python computes with, and where a block begins and ends.

    Raises:
        ValueError: it is no Python.
    """
    lines = io.BytesIO(source).readline
    word: list[str] = []  # of one logical line
    depth, begin = 0, (0, 0)
    text = source.decode("utf-8-sig", errors="replace").splitlines(keepends=True)
    try:
        for token in tokenize.tokenize(lines):
            if token.type in PARTED:
                depth += 1
                begin = token.start if depth == 1 else begin
            elif token.type in JOINED:
                depth -= 1
                if not depth:
                    word.append(_slice(text, begin, token.end))
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
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"a module can't be read as Python: {error}") from error


def _slice(lines: list[str], begin: tuple[int, int], end: tuple[int, int]) -> str:
    (first, start), (last, stop) = begin, end
    if first == last:
        return lines[first - 1][start:stop]
    return "".join([lines[first - 1][start:], *lines[first : last - 1], lines[last - 1][:stop]])


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
