"""Weights at zero: exactly as many blocks as asked for go, the smallest of each layer."""

import copy

import pytest
import torch
from torch import nn

from slimming import masks
from slimming.surgery.masks import apply, zeros

LAYERS = {
    "conv": nn.Conv2d(6, 10, (3, 5)),
    "grouped": nn.Conv2d(6, 10, 3, groups=2),
    "1d": nn.Conv1d(4, 10, 7),
    "3d": nn.Conv3d(2, 5, (1, 2, 3)),
    "linear": nn.Linear(7, 20),
}


def blocks(weight: torch.Tensor, block: str) -> torch.Tensor:
    """(number of blocks, weights of each), cut out of an ordinary layer by hand."""
    n, m, *kernel = weight.shape
    last = kernel[-1] if kernel else 1
    whole = weight.numel() // (n * m)
    size = {"weight": 1, "vector": last, "kernel": whole, "filter": m * whole}[block]
    return weight.reshape(-1, size)


@pytest.mark.parametrize("share", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("block", ["weight", "vector", "kernel", "filter"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_smallest_blocks_of_a_layer_go_and_exactly_that_many(kind, block, share):
    layer = copy.deepcopy(LAYERS[kind])
    (kept,) = masks(nn.Sequential(layer), share, block).values()
    parts, sums = blocks(kept, block), blocks(layer.weight, block).abs().sum(1)
    assert (parts.all(1) | ~parts.any(1)).all(), "a block goes as a whole"
    gone = ~parts.any(1)
    assert gone.sum() == int(round(share * 100) * len(parts) // 100)  # 0.29 * 100 is 28.99...
    if gone.any():
        assert sums[gone].max() <= sums[~gone].min()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_filter_of_a_transposed_convolution_is_what_makes_a_channel(groups):
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False))
    apply(model, masks(model, 0.5, "filter"))
    answers = model(torch.randn(2, 4, 5, 5))
    assert ((answers == 0).all(3).all(2).all(0)).sum() == 3


def test_of_equal_ones_the_first_go():
    model = nn.Sequential(nn.Linear(4, 2))
    nn.init.ones_(model[0].weight)
    (kept,) = masks(model, 0.5).values()
    assert kept.tolist() == [[False] * 4, [True] * 4]


def test_other_scores_and_shared_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[2].weight = model[0].weight
    wanted = torch.arange(9.0).view(3, 3)
    found = masks(model, 0.34, scores={"0.weight": wanted})
    assert found.keys() == {"0.weight"} and torch.equal(found["0.weight"], wanted >= 3)


def test_masks_are_found_again_in_the_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    assert zeros(model) == {}
    kept = masks(model, 0.6, "kernel")
    apply(model, kept)
    again = zeros(model)
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], mask) for name, mask in kept.items())


def test_what_cannot_be_masked_is_said_and_nothing_has_changed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2))
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="0 <= share < 1"):
            masks(model, share)
    with pytest.raises(
        ValueError, match="block is one of weight, vector, kernel, filter; got 'row"
    ):
        masks(model, 0.5, "row")
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        masks(nn.BatchNorm2d(3), 0.5)
    with pytest.raises(ValueError, match="'1.weight' needs finite scores of shape"):
        masks(model, 0.5, scores={"0.weight": model[0].weight})
    kept = masks(model, 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="another network's: '1.weight' differs"):
        apply(model, {**kept, "1.weight": kept["1.weight"][:1]})
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
