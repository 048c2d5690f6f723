"""What finding finished stages costs: a script by itself, and a further job of a sweep.

    python benchmarks/cache.py                         # made-up images, a pipeline of seconds
    python benchmarks/cache.py data=cifar10 data.root=data model=vgg11 model.width=0.0625

Computes the pipeline once, in a folder that is thrown away, then asks for it again and again.
Prints seconds of wall clock and of processor time (the first depends on what else the machine
does), and of a job of a sweep what is ours and what is Hydra's.
"""

import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SMALL = ["data=fake", "data.size=8", "model=vgg11", "model.width=0.0625"]
SHORT = ["epochs=1", "finetune.epochs=1", "logger=none"]
JOBS = 10


def script(words: list[str]) -> tuple[float, float]:
    """(wall, processor) seconds of `python pipeline.py words`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, ROOT / "pipeline.py", *words], check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def sweep(words: list[str]) -> tuple[list[float], float]:
    """Milliseconds of processor time of each job in our code, and of a job with Hydra's."""
    import pipeline

    ours, real = [], pipeline.pipeline

    def timed(cfg):
        start = time.process_time()
        folders = real(cfg)
        ours.append(1000 * (time.process_time() - start))
        return folders

    pipeline.pipeline = timed
    several = ",".join(f"[job{number}]" for number in range(JOBS))  # allow= changes no run
    with contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["pipeline.py", *words]
        pipeline.main()  # imports everything
        sys.argv = ["pipeline.py", "-m", *words, f"allow={several}"]
        start = time.process_time()
        pipeline.main()
    return ours[1:], 1000 * (time.process_time() - start) / JOBS


def main() -> None:
    asked = sys.argv[1:] or SMALL
    with tempfile.TemporaryDirectory() as folder:
        words = [*asked, *SHORT, f"runs_dir={folder}"]
        print("computing", *words)
        script(words)
        times = [script(words) for _ in range(3)]
        imports = script(["--help"])[1]
        jobs, whole = sweep(words)
    wall, processor = (statistics.median(column) for column in zip(*times))
    print(f"{'finished pipeline, script':34}{wall:7.2f} s wall {processor:7.2f} s processor")
    print(f"{'  of it, Hydra and --help alone':34}{'':14}{imports:7.2f} s processor")
    print(f"{'each further job of a sweep, ours':34}{statistics.median(jobs):21.0f} ms processor")
    print(f"{'  with what Hydra composes for it':34}{whole:21.0f} ms processor")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
