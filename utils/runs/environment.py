"""What a result was computed with: recorded beside it, compared when it is met again.

None of this is asked for, so none of it is in a run's name; but it can change the bits, or, as
other code does, everything.
"""

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("engine.py", "stages.py", "train.py", "prune.py", "finetune.py", "pipeline.py")
# What can change a result; the rest of the house only shows it. Networks, methods, schedules and
# the images of data sets are in a run's name, so a new one makes no other result doubtful.
SHELVES = {
    ROOT / "slimming" / "methods": ("base.py", "sparsity.py"),  # what all of them stand on
    ROOT / "utils" / "data" / "sets": ("__init__.py",),
    ROOT / "utils" / "training" / "schedules": ("__init__.py",),
}
COMPUTING = ("slimming", "utils/data", "utils/training", "utils/networks", "utils/runs")
LEVELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
UNITS = {"avx512_bf16", "amx_bf16", "amx_fp16", "avx512_fp16", "bf16"}  # of a processor's flags


def environment(device: torch.device) -> dict[str, Any]:
    """What computes now, as it stands in result.json and in resume.pt."""
    return {
        "commit": commit(),
        "code": code(),
        "versions": versions(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """ "other code (commit abc, here def), 2 threads (here 1)", or "" where nothing differs.

    What an older result doesn't say isn't compared.
    """
    same_code = then["code"] == now["code"] if "code" in then else then.get("commit") is None
    told = []
    if not same_code and ("code" in then or then.get("commit") != now["commit"]):
        told.append(f"other code (commit {then.get('commit')}, here {now['commit']})")
    pairs = {
        "torch": (then.get("versions", {}).get("torch"), now["versions"]["torch"]),
        "device": tuple(_kind(place.get("device")) for place in (then, now)),
        "instructions": (then.get("instructions"), now["instructions"]),
        "threads": (then.get("threads"), now["threads"]),
    }
    for name, (before, here) in pairs.items():
        if before is not None and before != here:
            told.append(f"{name} {before} (here {here})")
    return ", ".join(told)


def _kind(device: str | None) -> str | None:
    return device and device.partition(":")[0]  # cuda:0 and cuda:1 are alike


@lru_cache  # of the code this process loaded, whatever happens to the files
def code() -> str:
    """A digest of the code that can change a result, committed or not."""
    digest = hashlib.sha256()
    for path in _computing():
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _computing() -> Iterator[Path]:
    yield from (ROOT / name for name in SCRIPTS)
    for room in COMPUTING:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.name in SHELVES.get(path.parent, (path.name,)):
                yield path


@lru_cache
def commit() -> str:
    """The commit of the code; behind a +, six digits of what was changed since or isn't in git."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD").decode().strip() or "unknown"
        status = _git("status", "--porcelain", "-z", "--untracked-files=all")
    except FileNotFoundError:
        return "unknown"
    lines = status.decode(errors="replace").split("\0")
    new = [ROOT / line[3:] for line in lines if line.startswith("?? ")]
    new = [path for path in new if path.suffix in (".py", ".yaml") and path.is_file()]
    changed = [line for line in lines if line and not line.startswith("?? ")]
    if not changed and not new:
        return head
    digest = hashlib.sha256(_git("diff", "HEAD", "--binary") if changed else b"")
    for path in new:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{head}+{digest.hexdigest()[:6]}"


def _git(*words: str) -> bytes:
    # Asking writes nothing: killed, or on a full disk, git would leave its index locked.
    asked = ["git", "--no-optional-locks", *words]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True)
    return done.stdout if done.returncode == 0 else b""


@lru_cache
def instructions() -> str:
    """What the processor's kernels are chosen by, such as "AVX512 avx512_bf16"."""
    limits = [f"{name}={os.environ[name]}" for name in LEVELS if name in os.environ]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *_flags(), *limits])


def _flags() -> list[str]:
    info = Path("/proc/cpuinfo")  # torch has no public question for this
    return sorted(UNITS & set(info.read_text("utf-8").split())) if info.exists() else []


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on; the GPU only where one was used."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text("utf-8")) if info.exists() else []
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    known = {name: version(name) for name in ("torch", "torchvision", "hydra-core")}
    if "timm" in sys.modules:
        known["timm"] = version("timm")
    return {"python": platform.python_version(), **known}


def command() -> str:
    """As a person would type it again."""
    script, *arguments = sys.argv
    return shlex.join(["python", Path(script).name, *arguments])
