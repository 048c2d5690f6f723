"""The fully connected network of the paper's MNIST experiment (section 4.4, Table 3)."""

import math

from torch import Tensor, nn

from models.common import scaled


class MLP(nn.Module):
    """(N, *input_shape) -> (N, num_classes): Linear, BatchNorm1d and ReLU per hidden layer.

    The paper's network is 784-500-300-10. Gamma starts at 0.5, as everywhere in the paper.

    Args:
        input_shape: shape of one image, such as (1, 28, 28); it is flattened.
        hidden: neurons of each hidden layer.
        num_classes: outputs of the last layer.
        width: multiplies the hidden layers.

    Raises:
        ValueError: a width that leaves a layer without neurons.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (1, 28, 28),
        hidden: tuple[int, ...] = (500, 300),
        num_classes: int = 10,
        width: float = 1.0,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        num_in = math.prod(input_shape)
        for neurons in hidden:
            num_out = scaled(neurons, width)
            layers += [nn.Linear(num_in, num_out, bias=False), nn.BatchNorm1d(num_out), nn.ReLU()]
            nn.init.constant_(layers[-2].weight, 0.5)
            num_in = num_out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(num_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x.flatten(1)))
