"""Saving and loading networks, thin ones too: data only, never code (weights_only, no pickle).

A file holds the class and its plain arguments, the shape of every tensor, the weights, the channels
that were kept, where it came from, and how images become its inputs. `.pt` and `.safetensors` hold
the same.
"""

import io
import json
import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from slimming.surgery.builder import build, fit_shapes, only_plain, reason_of

FORMAT, SCHEMA = "network-slimming", 1
DEPLOYMENT = ("mean", "std", "resize", "classes")  # parts of a checkpoint that it may lack


@dataclass(frozen=True)
class Checkpoint:
    """A network as data."""

    target: str  # "models.vgg.VGG"
    arguments: dict[str, Any]  # numbers, texts, lists and dicts only
    weights: dict[str, Tensor]
    input_shape: tuple[int, ...]  # of one example, without the batch
    keep: dict[str, list[int]] = field(default_factory=dict)  # gate -> channels of the original
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per stage, oldest first
    # What a deployment needs besides; None: nobody said.
    mean: Sequence[float] | None = None  # (C,) of images in 0..1, RGB or grey, in training
    std: Sequence[float] | None = None  # (C,); an input is (image - mean) / std
    resize: int | None = None  # pixels of the shorter side before the centre is cut out
    classes: Sequence[str] | None = None  # what the outputs are called

    def __post_init__(self) -> None:
        _check_deployment(self)

    @property
    def module(self) -> str:
        """Where the class is defined, as `allow` wants it."""
        return self.target.rpartition(".")[0]


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write `.pt` or `.safetensors`; a file that was there is replaced only by a complete one.

    Raises:
        ValueError: another suffix, or arguments that aren't plain data.
        OSError: it can't be written; what was there before is intact.
    """
    path = Path(path)
    described = {
        "format": FORMAT,
        "schema": SCHEMA,
        "target": checkpoint.target,
        "arguments": only_plain(checkpoint.arguments),
        "input_shape": list(checkpoint.input_shape),
        "keep": {gate: [int(i) for i in kept] for gate, kept in checkpoint.keep.items()},
        "history": only_plain(checkpoint.history),
        **deployment(checkpoint),
    }
    weights = {  # a copy each: tied weights share memory, which safetensors refuses
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.weights.items()
    }
    if path.suffix == ".safetensors":
        data = to_safetensors(weights, metadata={FORMAT: json.dumps(described)})
    elif path.suffix == ".pt":
        buffer = io.BytesIO()  # torch.save turns a full disk into an error of its own
        torch.save({**described, "weights": weights}, buffer)
        data = buffer.getvalue()
    else:
        raise ValueError(f"a checkpoint is called .pt or .safetensors; got '{path.name}'")
    write_atomically(path, lambda file: file.write(data))


def read(path: str | Path) -> Checkpoint:
    """Read a file written by `save`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken, or not a checkpoint of this project.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.pt"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        saved = _open(path)
    except pickle.UnpicklingError as error:
        reason = "it isn't plain data, and loading it could run code"
        raise ValueError(f"{path} is broken or not a checkpoint: {reason}") from error
    except Exception as error:  # what a damaged file raises has no common type
        raise ValueError(f"{path} is broken or not a checkpoint: {reason_of(error)}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this project")
    if saved.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {saved.get('schema')}; this version reads {SCHEMA}")
    try:
        checkpoint = Checkpoint(
            target=str(saved["target"]),
            arguments=dict(saved["arguments"]),
            weights=dict(saved["weights"]),
            input_shape=tuple(int(size) for size in saved["input_shape"]),
            keep={gate: list(kept) for gate, kept in dict(saved["keep"]).items()},
            history=list(saved["history"]),
            **{key: saved[key] for key in DEPLOYMENT if key in saved},  # older files have none
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} lacks a part of a checkpoint: {reason_of(error)}") from error
    if not all(isinstance(tensor, Tensor) for tensor in checkpoint.weights.values()):
        raise ValueError(f"{path} lacks a part of a checkpoint: some weights are no tensors")
    return checkpoint


def deployment(checkpoint: Checkpoint) -> dict[str, Any]:
    """{"mean", "std", "resize", "classes"} as plain data, without those that nobody said."""
    said = {key: getattr(checkpoint, key) for key in DEPLOYMENT}
    return {key: only_plain(value) for key, value in said.items() if value is not None}


def _check_deployment(said: Checkpoint) -> None:
    """
    Raises:
        ValueError: it would lead a deployment astray.
    """
    if (said.mean is None) != (said.std is None):
        raise ValueError("mean and std belong together: a checkpoint has both or neither")
    if said.mean is not None:
        sizes = {(len(numbers),) for numbers in (said.mean, said.std)}
        if sizes != {tuple(said.input_shape[:1])} or not _finite(*said.mean, *said.std):
            raise ValueError(
                f"mean and std are one number each per channel of inputs of shape "
                f"{tuple(said.input_shape)}; got {said.mean} and {said.std}"
            )
        if min(said.std) <= 0:
            raise ValueError(f"images are divided by std, so it is above 0; got {said.std}")
    if said.resize is not None and (not isinstance(said.resize, int) or said.resize < 1):
        raise ValueError(f"resize is a number of pixels; got {said.resize!r}")
    names = said.classes if isinstance(said.classes, (list, tuple, type(None))) else [None]
    if not all(isinstance(name, str) for name in names or ()):
        raise ValueError(f"classes are names, one per output; got {said.classes!r}")


def _finite(*values: Any) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _open(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    with safe_open(path, "pt") as file:
        described = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
        names = file.keys()
        return {**described, "weights": {name: file.get_tensor(name) for name in names}}


def load(path: str | Path, allow: Sequence[str] = ()) -> nn.Module:
    """From file to network, in eval mode on the CPU; thin ones need no tracing.

    Args:
        path: a `.pt` or `.safetensors` file, or a run folder.
        allow: further modules whose classes may be built, such as "my_pkg.net".

    Raises:
        FileNotFoundError, ValueError: as `read`, or a class that isn't allowed.
    """
    return restore(read(path), allow)


def restore(checkpoint: Checkpoint, allow: Sequence[str] = ()) -> nn.Module:
    """The network of a checkpoint, in eval mode."""
    model = build(checkpoint.target, checkpoint.arguments, allow)
    fit_shapes(model, checkpoint.weights)
    weights = OrderedDict(checkpoint.weights)
    weights._metadata = model.state_dict()._metadata  # some classes ask for their version
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        message = f"the weights don't fit {checkpoint.target}: {reason_of(error)}"
        raise ValueError(message) from error
    return model.eval()


def compose(
    earlier: Mapping[str, Sequence[int]], keep: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Channels kept of the original network, when a thin one is cut again."""
    composed = {gate: list(kept) for gate, kept in earlier.items()}
    for gate, kept in keep.items():
        composed[gate] = [earlier[gate][i] if gate in earlier else i for i in kept.tolist()]
    return composed


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path`, then put it there in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
