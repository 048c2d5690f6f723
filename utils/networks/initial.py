"""Weights to start from, out of a local file: torchvision's, somebody's state_dict, or ours."""

import hashlib
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slimming import checkpoint as artifact
from slimming.surgery.builder import inside, reason_of

# Under which files keep their tensors; the first one that is there.
WRAPPERS = ("weights", "state_dict", "model", "model_state_dict", "net", "params")
COUNTER = "n_averaged"  # beside the weights of torch's AveragedModel


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

        What wraps a network puts a prefix before its names (`module.` of DataParallel, `_orig_mod.`
        of torch.compile, `model.` of Lightning); the one under which the file holds most of the
        network's names is taken off.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        own = {key: t for key, t in model.state_dict().items() if not inside(key, self.skip)}
        for layer in self.skip:
            if not any(inside(key, (layer,)) for key in model.state_dict()):
                raise ValueError(f"init_skip names '{layer}', which {name} lacks")
        weights = _without_prefix(self.weights, model.state_dict().keys())
        weights = {key: tensor for key, tensor in weights.items() if not inside(key, self.skip)}
        wrong = {
            key: problem
            for key in [*own, *(weights.keys() - own.keys())]
            if (problem := _problem(key, own.get(key), weights.get(key)))
        }
        if wrong:
            raise ValueError(f"init={self.path} doesn't fit {name}: {_listed(wrong)}")
        with torch.no_grad():
            for key in own.keys() & weights.keys():
                own[key].copy_(weights[key])


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _without_prefix(weights: dict[str, Tensor], own: Set[str]) -> dict[str, Tensor]:
    """Names without what stands before most of those that the network has, too."""
    found = Counter(
        key[:start]
        for key in weights
        for start in [0, *(i + 1 for i, letter in enumerate(key) if letter == ".")]
        if key[start:] in own
    )
    prefix = max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")
    bare = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    if prefix and COUNTER not in own:
        bare.pop(COUNTER, None)
    return bare


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
    if not _is_weights(saved) and isinstance(saved, Mapping):
        parts = {key: part for key, part in saved.items() if _is_weights(part)}
        known = [parts[key] for key in WRAPPERS if key in parts]
        if not known and len(parts) > 1:
            raise ValueError(
                f"init={path} holds weights under {', '.join(map(repr, parts))}: "
                "save the one that is meant by itself"
            )
        saved = next(iter([*known, *parts.values()]), None)
    if not _is_weights(saved):
        raise ValueError(f"init={path} holds no weights: names and tensors are expected")
    return dict(saved)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_weights(saved: Any) -> bool:
    return (
        isinstance(saved, Mapping)
        and bool(saved)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in saved.items())
    )
