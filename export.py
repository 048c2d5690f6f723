"""A checkpoint -> one file to keep, to ship or to run elsewhere, checked against its source.

    python export.py runs/<name> to=thin.onnx
    python export.py runs/<name> to=thin.py fold=true
    python export.py runs/<name> to=thin.safetensors half=true

`.onnx` takes batches of any size. `.py` needs nothing but torch; its weights lie beside it, and
`python thin.py photo.jpg` names a class. What is written as `.safetensors` or `.pt` can be trained
and cut further: `from slimming import load` opens it, without tracing and without pickle. Each file
says how a picture becomes an input, and none where it was made.
"""

from utils.cli.script import begin, script

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("export")

import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from slimming import checkpoint as artifact
from slimming.checkpoint import Checkpoint
from slimming.surgery.fold import fold
from utils.exports import advice, onnx_file, parity, standalone, timing
from utils.exports.folders import without_folders, word_without_folders
from utils.networks.cost import count_macs
from utils.runs.environment import command
from utils.runs.parent import Parent, find_parent
from utils.runs.results import writable

TRAINABLE, DEPLOYED = (".safetensors", ".pt"), (".onnx", ".py")


def export(cfg) -> dict:
    """Write `to`, if it passes its check -> {"path", "bytes", "difference", "latency", "advice"}.

    `difference` is the largest one to the source's outputs, relative to their largest magnitude;
    `advice` says where the file is slower than need be.
    """
    path = find_parent(cfg.ckpt, cfg.runs_dir, lambda result: True, "run `python train.py` first")
    to = _destination(cfg, path)
    checkpoint = Parent.open(path).checkpoint
    checkpoint = replace(checkpoint, history=without_folders(checkpoint.history))
    source = artifact.restore(checkpoint, tuple(cfg.allow))
    network = fold(source, parity.images(checkpoint.input_shape, 2)) if cfg.fold else source
    write, facts = _writer(cfg, to, checkpoint, network), _facts(cfg, checkpoint, source)
    exact = to.suffix != ".onnx" and not cfg.fold
    check = parity.Check(source, checkpoint.input_shape, exact, cfg.half)
    # What was there before stays until this is checked.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=to.parent) as name:
        trial = Path(name) / to.name
        for _ in range(2):  # the second one says what the check of the first one found
            written = write(trial, facts)
            facts["parity"] = check(written, to)
        files = sorted(Path(name).iterdir(), key=lambda file: file.name == to.name)
        for file in files:
            os.replace(file, to.with_name(file.name))
    difference = facts["parity"]["largest_relative_difference"]
    size = sum(to.with_name(file.name).stat().st_size for file in files)
    print(f"{to}: {size:,} bytes; its outputs differ by {difference:.1e} (relative)")
    if len(files) > 1:
        print(f"{to.name} reads {files[0].name}, which lies beside it: take both along")
    found = {"path": to, "bytes": size, "difference": difference, "latency": None, "advice": []}
    return found | (_latency(cfg, to, checkpoint, source) if cfg.latency else {})


def _destination(cfg, source: Path) -> Path:
    """`to`, if it can be written there and with these options."""
    if cfg.to is None:
        raise ValueError("say which file to write: to=NAME.safetensors (or .pt, .onnx, .py)")
    to = Path(cfg.to).expanduser()
    if to.suffix not in TRAINABLE + DEPLOYED:
        raise ValueError(f"to={cfg.to}: the name ends in {', '.join(TRAINABLE + DEPLOYED)}")
    if cfg.fold and to.suffix in TRAINABLE:
        raise ValueError(
            f"fold=true is for files that are only run (.onnx, .py): a {to.suffix} file keeps the "
            f"BatchNorms, so that the network can be trained and cut further"
        )
    if cfg.half and to.suffix == ".onnx":
        raise ValueError(
            "half=true is for .safetensors, .pt and .py, whose weights become float32 again when "
            "they are loaded; an ONNX file keeps float32"
        )
    if not to.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {to.parent} to write to={cfg.to} in")
    if to.is_dir() or to.resolve() in (source.resolve(), (source / "model.pt").resolve()):
        what = "a folder" if to.is_dir() else "the checkpoint itself"
        raise ValueError(f"to={cfg.to} is {what}: choose another name")
    if to.suffix == ".py":
        standalone.check_name(to)
    writable(to.parent)
    return to


def _writer(
    cfg, to: Path, checkpoint: Checkpoint, network: nn.Module
) -> Callable[[Path, dict], Any]:
    """write(path, facts) -> what the file computes, read back from it."""
    if to.suffix in DEPLOYED:
        module = onnx_file if to.suffix == ".onnx" else standalone
        options = {"half": True} if cfg.half else {}
        program = module.convert(network, checkpoint.input_shape)
        size = {"input_size": list(checkpoint.input_shape[1:])}  # height, width
        told = {**size, **artifact.deployment(checkpoint)}

    def write_deployed(path: Path, facts: dict):
        module.save(path, program, facts, told, **options)
        return module.open_file(path)

    def write_trainable(path: Path, facts: dict):
        artifact.save(path, _halved(checkpoint, to) if cfg.half else checkpoint)
        return artifact.load(path, tuple(cfg.allow))

    return write_deployed if to.suffix in DEPLOYED else write_trainable


def _halved(checkpoint: Checkpoint, to: Path) -> Checkpoint:
    """With float16 weights, which are float32 again once they are loaded.

    Raises:
        RuntimeError: one is too large for that.
    """
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.weights.items()
    }
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise RuntimeError(f"{to} was not written: '{name}' is beyond float16; try half=false")
    return replace(checkpoint, weights=weights, dtype="float32")


def _facts(cfg, checkpoint: Checkpoint, source: nn.Module) -> dict[str, Any]:
    """What the file says it is."""
    return {
        "target": checkpoint.target,
        "arguments": checkpoint.arguments,
        "input_shape": checkpoint.input_shape,
        "params": sum(p.numel() for p in source.parameters()),
        "macs": count_macs(source, checkpoint.input_shape),
        "folded": cfg.fold,
        "half": cfg.half,
        "history": checkpoint.history,
        "command": shlex.join(map(word_without_folders, shlex.split(command()))),
    }


def _latency(cfg, to: Path, checkpoint: Checkpoint, source: nn.Module) -> dict[str, Any]:
    """Time it beside the network it was cut from, whose weights don't matter."""
    dense = artifact.build(checkpoint.target, checkpoint.arguments, tuple(cfg.allow)).eval()
    shapes = [{k: t.shape for k, t in m.state_dict().items()} for m in (dense, source)]
    networks = {"this": source} if shapes[0] == shapes[1] else {"dense": dense, "thin": source}
    written = to if to.suffix == ".onnx" else None
    shape = checkpoint.input_shape
    times, said = timing.compare(networks, shape, written), []
    if "thin" in networks:
        runtime = "torch" if written is None else "onnxruntime"
        said = advice.sentences(times, runtime, dense, source, checkpoint.keep, shape)
    for sentence in said:
        print(f"note: {sentence}")
    return {"latency": times, "advice": said}


@script("export")
def main(cfg) -> None:
    export(cfg)


if __name__ == "__main__":
    main()
