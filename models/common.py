"""What several networks share: how wide a layer is, and how its weights start."""

import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded down.

    Raises:
        ValueError: none would be left.
    """
    if int(channels * width) < 1:
        raise ValueError(f"width={width} leaves layers without channels; use at least 1/{channels}")
    return int(channels * width)


def as_in_the_paper(model: nn.Module) -> None:
    """Initialise in place as Liu et al. 2017 do (section 4.3) and, beyond the text, their code.

    Convolutions: normal with variance 2 / fan-out (He et al. 2015); gamma 0.5, beta 0, which train
    better than gamma 1; linear layers as torch has them, with bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, _BatchNorm):
            nn.init.constant_(module.weight, 0.5)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
