"""One process computes a run, others wait: locks lie beside the folders, in runs/.locks/.

Not in them: a lock that goes with its folder would lock nothing for those who wait for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCKS = ".locks"


def lock_of(folder: Path) -> Path:
    return folder.parent / LOCKS / f"{folder.name}.lock"


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made; wait for who holds it, take over where that one fails.

    The lock of a dead process is free. Nothing in the folder is deleted, it itself only if empty.

    Raises:
        OSError: it can't be written here.
    """
    file = lock_of(folder)
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder.name} is being computed by another process: waiting for it")
            lock.acquire()
            if (reason := failure(folder)) is not None:
                print(f"the other process failed ({reason}): computing {folder.name} here")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        lock.release()
        raise OSError(
            f"can't write to the run folder {folder} ({error.strerror or error}); "
            f"choose another place with runs_dir=..."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # it holds something
            folder.rmdir()
        lock.release()


def held(folder: Path) -> bool:
    """Whether a living process computes in this folder."""
    lock = lock_of(folder)
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a place that can't be written to: nobody computes there
        return False


def failure(folder: Path) -> str | None:
    """Why the last try in this folder failed, or None."""
    try:
        return (folder / "error.txt").read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
