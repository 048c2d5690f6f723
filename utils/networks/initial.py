"""Weights to start from, out of a local file: torchvision's, somebody's state_dict, or ours."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slimming import checkpoint as artifact
from slimming.surgery.builder import inside, reason_of

WRAPPERS = ("weights", "state_dict", "model")  # under which files keep their tensors


@dataclass(frozen=True)
class Initial:
    """Tensors of a file, without those that are to start fresh."""

    path: str
    weights: dict[str, Tensor]
    skip: tuple[str, ...]  # layers that start fresh

    @classmethod
    def read(cls, path: str | Path, skip: str | Sequence[str] = ()) -> "Initial":
        """
        Args:
            path: a .pt or .pth file (a state_dict), a .safetensors file, or a run folder.
            skip: names of layers, such as "fc"; all that is below them is left out.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is broken, or holds something else than weights.
        """
        skip = (skip,) if isinstance(skip, str) else tuple(map(str, skip))
        weights = _open(Path(path))
        used = {name: tensor for name, tensor in weights.items() if not inside(name, skip)}
        return cls(str(path), used, skip)

    @property
    def identity(self) -> str:
        return weights_digest(self.weights)

    def put_into(self, model: nn.Module, name: str) -> None:
        """Overwrite all weights of `model` but those of skipped layers.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        own = {key: t for key, t in model.state_dict().items() if not inside(key, self.skip)}
        for layer in self.skip:
            if not any(inside(key, (layer,)) for key in model.state_dict()):
                raise ValueError(f"init_skip names '{layer}', which {name} lacks")
        wrong = {
            key: problem
            for key in [*own, *(self.weights.keys() - own.keys())]
            if (problem := _problem(key, own.get(key), self.weights.get(key)))
        }
        if wrong:
            raise ValueError(f"init={self.path} doesn't fit {name}: {_listed(wrong)}")
        with torch.no_grad():
            for key in own.keys() & self.weights.keys():
                own[key].copy_(self.weights[key])


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _problem(key: str, own: Tensor | None, given: Tensor | None) -> str | None:
    if own is None:
        return "isn't in the network"
    if given is None:  # older files have no such counters
        return None if key.endswith("num_batches_tracked") else "isn't in the file"
    if own.shape != given.shape:
        return f"is {tuple(given.shape)} instead of {tuple(own.shape)}"
    return None


def _listed(wrong: dict[str, str]) -> str:
    layers = sorted({key.rpartition(".")[0] or key for key in wrong})
    first = ", ".join(f"'{key}' {problem}" for key, problem in list(wrong.items())[:3])
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    if len(layers) > 3:
        return f"{first}{more}: it seems to be another network's"
    return f"{first}{more}; init_skip=[{','.join(layers)}] lets these start fresh"


def _open(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return artifact.read(path).weights
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at init={path}")
    try:
        saved = _load(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"init={path} isn't plain weights, and loading it could run code: "
            f"save the network's state_dict() instead"
        ) from error
    except Exception as error:  # what a damaged file raises has no common type
        raise ValueError(f"init={path} can't be read: {reason_of(error)}") from error
    if isinstance(saved, dict):
        saved = next((saved[key] for key in WRAPPERS if isinstance(saved.get(key), dict)), saved)
    if not isinstance(saved, dict) or not saved or not all(map(_is_weight, saved.items())):
        raise ValueError(f"init={path} holds no weights: names and tensors are expected")
    return dict(saved)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
