"""What data tell a deployment: how an image becomes an input, what the outputs are called."""

from typing import Any

from torch import Tensor

from utils.data.sets import Data
from utils.data.streaming import Streamed


def deployment(data: Data | Streamed) -> dict[str, Any]:
    """{"mean", "std", "resize", "classes"}, as a `Checkpoint` carries them.

    mean and std are of images in 0..1, as torchvision's ToTensor makes them; resize is the shorter
    side before the centre is cut out, None where the whole image is scaled to the input's size.
    """
    return {
        "mean": _shares(data.mean),
        "std": _shares(data.std),
        # Its fields are in the names of runs, so it is asked rather than given another one.
        "resize": data.crop.transforms[0].size[0] if isinstance(data, Streamed) else None,
        "classes": list(data.classes),
    }


def _shares(levels: Tensor) -> list[float]:
    """Of levels in 0..255, to the seven digits that a float32 has."""
    return [float(f"{level / 255:.7g}") for level in levels.tolist()]
