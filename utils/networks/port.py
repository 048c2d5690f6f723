"""Checkpoints of the official PyTorch port (Eric-mingjie/network-slimming): its VGGs, as ours.

Its files hold `state_dict` and, once pruned, `cfg`; which channels were kept they don't say. Its
layers are ours under other names; two numbers differ: the eps of a BatchNorm and the normalisation
of the images.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.vgg import LAYERS
from slimming import checkpoint as artifact
from slimming.checkpoint import Checkpoint
from utils.data.sets import Data

EPS, OURS = 1e-5, 1e-3  # of a BatchNorm: torch's default, which the port has, and models.vgg's
NORMALISE = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}  # images in 0..1
DATASETS = {10: "utils.data.cifar10", 100: "utils.data.cifar100"}


def read(path: str | Path) -> Checkpoint:
    """A checkpoint of this project or a VGG of the port; `artifact.read` reads only the first.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken, neither of the two, or another network of the port.
    """
    try:
        return artifact.read(path)
    except ValueError:
        saved = _open(Path(path))
        if not isinstance(saved, Mapping) or not isinstance(saved.get("state_dict"), Mapping):
            raise
    try:
        return _convert(saved)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def normalised(data: Data, checkpoint: Checkpoint) -> Data:
    """The data as the checkpoint's network is used to them, where its history says how."""
    known = [entry["normalise"] for entry in checkpoint.history if "normalise" in entry]
    if not known:
        return data
    mean, std = (255 * data.mean.new_tensor(known[-1][key]) for key in ("mean", "std"))
    if mean.shape != data.mean.shape or std.shape != data.std.shape:
        raise ValueError(f"the checkpoint's mean and std don't fit the images of {data.name}")
    return replace(data, mean=mean, std=std)


def _open(path: Path) -> Any:
    """What the file holds, or None where it isn't a file of torch."""
    if not path.is_file() or path.suffix == ".safetensors":
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "numpy" not in str(error):
            return None
        raise ValueError(
            f"{path} holds numbers of numpy, which torch doesn't load as plain data; if you trust "
            f"the file, open it with c = torch.load(PATH, weights_only=False) and write "
            f'torch.save({{key: c[key] for key in ("cfg", "state_dict") if key in c}}, NEW)'
        ) from error
    except Exception:  # what a damaged file raises has no common type
        return None


def _convert(saved: Mapping[str, Any]) -> Checkpoint:
    weights = {
        re.sub(r"^(module\.)?feature\.", "features.", name).removeprefix("module."): tensor
        for name, tensor in saved["state_dict"].items()
    }
    foreign = [name for name in weights if not name.startswith(("features.", "classifier."))]
    if foreign or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(
            "of the official PyTorch port only VGG checkpoints can be read, not its ResNet or "
            "DenseNet" + (f": '{foreign[0]}' is no layer of a VGG" if foreign else "")
        )
    if "classifier.weight" not in weights or weights["classifier.weight"].dim() != 2:
        raise ValueError("it lacks the VGG's last layer, classifier.weight")
    layout = _layout(weights)
    if "cfg" in saved and list(saved["cfg"]) != layout:
        raise ValueError(f"its cfg {list(saved['cfg'])} isn't that of its weights: {layout}")
    if 0 in layout:
        raise ValueError("a layer of this network has no channels left, so it computes nothing")
    for name in [name for name in weights if name.endswith("running_var")]:
        # torch adds eps to it, and the sum is what counts; it may fall below zero, the sum can't
        weights[name] = weights[name] + (EPS - OURS)
        tracked = name.replace("running_var", "num_batches_tracked")
        weights.setdefault(tracked, torch.tensor(0))  # torch 0.3 had none
    num_classes = len(weights["classifier.weight"])
    arguments = {"depth": _depth(layout), "num_classes": num_classes, "in_channels": 3}
    checkpoint = Checkpoint(
        "models.vgg.VGG",
        arguments,
        weights,
        (3, 32, 32),
        history=[_entry(saved, num_classes)],
        **NORMALISE,
    )
    artifact.restore(checkpoint)  # whatever doesn't fit is found here
    return checkpoint


def _layout(weights: Mapping[str, Tensor]) -> list[int | str]:
    """The port's `cfg`: output channels of each convolution, "M" for a pooling layer."""
    convs = {
        int(name.split(".")[1]): len(tensor)
        for name, tensor in weights.items()
        if name.startswith("features.") and name.endswith(".weight") and tensor.dim() == 4
    }
    layout: list[int | str] = []
    place = 0
    for number, channels in sorted(convs.items()):
        layout += ["M"] * (number - place) + [channels]
        place = number + 3  # convolution, BatchNorm, ReLU
    return layout


def _depth(layout: Sequence[int | str]) -> int:
    def turns(layers: Sequence[int | str]) -> list[bool]:
        return [layer == "M" for layer in layers]

    for depth, layers in LAYERS.items():
        if turns(layers) == turns(layout):
            return depth
    known = ", ".join(f"VGG-{depth}" for depth in LAYERS)
    raise ValueError(f"its layers {list(layout)} are those of none of {known}")


def _entry(saved: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The line of history: what the file says of its past, and what data it was made for."""
    entry: dict[str, Any] = {"stage": "official PyTorch port", "normalise": NORMALISE}
    for key, kind in (("epoch", int), ("best_prec1", float)):
        if key in saved:
            entry[key] = kind(saved[key])
    if num_classes in DATASETS:
        entry["data"] = {"_target_": DATASETS[num_classes]}
    return entry
