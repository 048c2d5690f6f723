"""Saving and loading networks, thin ones too: data only, never code (weights_only, no pickle).

A file holds the class and its plain arguments, the shape of every tensor, the weights, the channels
that were kept and where it came from. `.pt` and `.safetensors` hold the same.
"""

import importlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from slimming.selection import select
from slimming.surgery import agree, replace_module

FORMAT, SCHEMA = "network-slimming", 1
ALLOWED = ("models", "torchvision.models")  # modules whose networks a checkpoint may name


@dataclass(frozen=True)
class Checkpoint:
    """A network as data."""

    target: str  # "models.vgg.VGG"
    arguments: dict[str, Any]  # numbers, texts, lists and dicts only
    weights: dict[str, Tensor]
    input_shape: tuple[int, ...]  # of one example, without the batch
    keep: dict[str, list[int]] = field(default_factory=dict)  # gate -> channels of the original
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per stage, oldest first

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
        "arguments": _plain(checkpoint.arguments),
        "input_shape": list(checkpoint.input_shape),
        "keep": {gate: [int(i) for i in kept] for gate, kept in checkpoint.keep.items()},
        "history": _plain(checkpoint.history),
    }
    weights = {k: v.detach().cpu().contiguous() for k, v in checkpoint.weights.items()}
    if path.suffix == ".safetensors":
        data = to_safetensors(weights, metadata={FORMAT: json.dumps(described)})
        write_atomically(path, lambda file: file.write(data))
    elif path.suffix == ".pt":
        write_atomically(path, lambda file: torch.save({**described, "weights": weights}, file))
    else:
        raise ValueError(f"a checkpoint is called .pt or .safetensors; got '{path.name}'")


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
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                saved = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
                saved["weights"] = {name: file.get_tensor(name) for name in file.keys()}
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is broken or not a checkpoint: {_reason(error)}") from error
    except Exception as error:  # pickle's own errors have no common type
        raise ValueError(f"{path} can't be opened as plain data: {_reason(error)}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this project")
    if saved.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {saved.get('schema')}; this version reads {SCHEMA}")
    try:
        return Checkpoint(
            target=str(saved["target"]),
            arguments=dict(saved["arguments"]),
            weights=dict(saved["weights"]),
            input_shape=tuple(saved["input_shape"]),
            keep=dict(saved["keep"]),
            history=list(saved["history"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} lacks a part of a checkpoint: {error}") from error


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
    weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.weights.items()
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        message = f"the weights don't fit {checkpoint.target}: {_reason(error)}"
        raise ValueError(message) from error
    return model.eval()


def build(target: str, arguments: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Call an allowed network class, or builder function of torchvision, with plain arguments.

    Raises:
        ValueError: the name is not of an allowed module, or doesn't lead to a network.
    """
    allowed = (*ALLOWED, *allow)
    module_name, _, name = target.rpartition(".")
    if not any(_inside(module_name, prefix) for prefix in allowed):
        raise ValueError(
            f"'{target}' is not among the networks that may be built ({', '.join(allowed)}); "
            f"if you trust it, allow its module: allow=[{module_name}]"
        )
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no network '{target}': {error}") from error
    if not _is_network(factory, name, allowed):
        raise ValueError(f"'{target}' is not a network class defined in {', '.join(allowed)}")
    try:
        return factory(**_plain(dict(arguments)))
    except TypeError as error:
        raise ValueError(f"{target} can't be built with {dict(arguments)}: {error}") from error


def fit_shapes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a freshly built network the (smaller) shapes of these tensors, in place."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    touched = set()
    for name, tensor in weights.items():
        path, _, attribute = name.rpartition(".")
        if shapes.get(name) == tensor.shape:
            continue
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"the checkpoint has '{name}', which the network lacks") from error
        if attribute == "index" and name not in shapes:
            module = select(module, torch.empty_like(tensor))
            replace_module(model, path, module)
        elif attribute == "bias" and name not in shapes:
            module.bias = nn.Parameter(torch.empty(tensor.shape))
        elif name in model.state_dict():
            old = getattr(module, attribute)
            new = torch.empty(tensor.shape, dtype=old.dtype)
            setattr(module, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        touched.add(path)
    for path in touched:
        agree(model.get_submodule(path))


def compose(
    earlier: Mapping[str, Sequence[int]], keep: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Channels kept of the original network, when a thin one is cut again."""
    return {
        gate: [earlier[gate][i] for i in kept.tolist()] if gate in earlier else kept.tolist()
        for gate, kept in keep.items()
    }


def write_atomically(path: Path, write: Any) -> None:
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


def _is_network(factory: Any, name: str, allowed: Iterable[str]) -> bool:
    """A class is judged by where it was defined, so that an imported one doesn't count."""
    if isinstance(factory, type):
        inside = any(_inside(factory.__module__, prefix) for prefix in allowed)
        return issubclass(factory, nn.Module) and inside
    if getattr(factory, "__module__", "").startswith("torchvision.models"):
        from torchvision.models import list_models

        return name in list_models()
    return False


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def _plain(value: Any) -> Any:
    """A copy made of None, bool, int, float, str, list and dict only."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise ValueError(f"a checkpoint holds plain values only, not {type(value).__name__}: {value!r}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")
