"""Saving and loading networks, thin ones too: data only, never code (weights_only, no pickle).

A file holds the class and its plain arguments, what was changed of its modules, the weights, the
channels that were kept, where it came from, and how images become its inputs. `.pt` and
`.safetensors` hold the same.
"""

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from slimming.graph.slices import UNREAD
from slimming.modules.selection import named_norms
from slimming.surgery.builder import build, fit_shapes, only_plain, reason_of
from slimming.surgery.checks import check_deployment, check_finite, check_kept, check_selections
from slimming.surgery.edits import Edit, edits_in, upgrade

FORMAT, SCHEMA = "network-slimming", 2
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
    # (path, kind, plain arguments) of each change of a module, see `slimming.surgery.edits`.
    edits: Sequence[Edit] | None = None  # None: as `weights` say, if they are a state_dict
    dtype: str | None = None  # what floating weights are once loaded; None: as they are saved
    schema: int = SCHEMA  # of the names in `weights`

    def __post_init__(self) -> None:
        edits = edits_in(self.weights) if self.edits is None else self.edits
        edits = [(path, kind, dict(arguments)) for path, kind, arguments in edits]
        if not all(isinstance(word, str) for edit in edits for word in edit[:2]):
            raise ValueError(f"an edit is (path, kind, arguments); got {edits}")
        object.__setattr__(self, "edits", edits)
        keep = {gate: kept for gate, kept in self.keep.items() if gate != UNREAD}
        object.__setattr__(self, "keep", keep)
        check_deployment(self)

    def of(self, model: nn.Module) -> "Checkpoint":
        """The same, with the weights and edits of this network."""
        now = {"weights": model.state_dict(), "edits": None, "dtype": None, "schema": SCHEMA}
        return replace(self, **now)

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
        "schema": checkpoint.schema,
        "target": checkpoint.target,
        "arguments": only_plain(checkpoint.arguments),
        "input_shape": list(checkpoint.input_shape),
        "keep": {gate: [int(i) for i in kept] for gate, kept in checkpoint.keep.items()},
        "history": only_plain(checkpoint.history),
        "edits": only_plain(checkpoint.edits),
        "dtype": checkpoint.dtype,
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
    if saved.get("schema") not in range(1, SCHEMA + 1):
        raise ValueError(
            f"{path} has schema {saved.get('schema')}; this version reads 1 to {SCHEMA}"
        )
    try:
        checkpoint = Checkpoint(
            target=str(saved["target"]),
            arguments=dict(saved["arguments"]),
            weights=dict(saved["weights"]),
            input_shape=tuple(int(size) for size in saved["input_shape"]),
            keep={gate: list(kept) for gate, kept in dict(saved["keep"]).items()},
            history=list(saved["history"]),
            edits=saved.get("edits", []),  # older files have none
            dtype=saved.get("dtype"),
            schema=saved["schema"],
            **{key: saved[key] for key in DEPLOYMENT if key in saved},
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
    """The network of a checkpoint, in eval mode.

    Raises:
        ValueError: its class isn't allowed, or it isn't true what it says.
    """
    model = build(checkpoint.target, checkpoint.arguments, allow)
    dense = _widths(model)
    check_finite(checkpoint.weights)
    weights = checkpoint.weights
    if checkpoint.schema == 1:
        weights = upgrade(model, weights)
    weights = OrderedDict(_of_type(weights, checkpoint))
    fit_shapes(model, weights, checkpoint.edits)
    weights._metadata = model.state_dict()._metadata  # some classes ask for their version
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        message = f"the weights don't fit {checkpoint.target}: {reason_of(error)}"
        raise ValueError(message) from error
    folded = any(kind == "folded" for _, kind, _ in checkpoint.edits)
    check_kept(checkpoint.keep, dense, {} if folded else _widths(model))
    check_selections(model)
    return model.eval()


def _widths(model: nn.Module) -> dict[str, int]:
    """Of BatchNorms; and of what may be the gammas of one in functional form, by their own name."""
    scales = {n: len(p) for n, p in model.named_parameters(remove_duplicate=False) if p.dim() == 1}
    return scales | {gate: norm.num_features for gate, norm in named_norms(model)}


def _of_type(weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights, those of a floating type as the checkpoint wants them to be loaded."""
    # Until schema 2 they became float32 whatever the file held.
    name = "float32" if checkpoint.schema == 1 else checkpoint.dtype
    if name is None:
        return dict(weights)
    kind = getattr(torch, str(name), None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"the checkpoint's weights are to be {name!r}, which is no type of torch")
    return {n: t.to(kind) if t.is_floating_point() else t for n, t in weights.items()}


def compose(
    earlier: Mapping[str, Sequence[int]], keep: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Channels kept of the original network, when a thin one is cut again."""
    composed = {gate: list(kept) for gate, kept in earlier.items()}
    for gate, kept in keep.items():
        if gate != UNREAD:  # the weights show what became of streams
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
