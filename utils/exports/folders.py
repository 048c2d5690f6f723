"""Files that are shipped say nothing of the machine that made them."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


def without_folders(value: Any) -> Any:
    """Plain data in which a path of this machine is only its last name: a file that is shipped
    says nothing of who made it where."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(value)
        if path.is_absolute() or value.startswith("~"):
            return "~" if path in (kind(Path.home()), kind("~")) else path.name or value
    return value


def word_without_folders(word: str) -> str:
    """The same of the paths in a word of a command line: "to=/a/b.py", "init='/a/b'", "[/a,/b]"."""
    part = r"(?:[A-Za-z]:\\)?[^=:{}\[\],'\"]+"
    return re.sub(part, lambda found: without_folders(found[0]), word)
