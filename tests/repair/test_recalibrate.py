"""Statistics are estimated by the images that there are, or stay as they were."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers import assert_same_state, randomise, state
from slimming import recalibrate
from zoo import block, chain, conv

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)


def classifier() -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), conv(4, 5, 1), nn.BatchNorm2d(5), nn.Flatten()]
    return randomise(chain(*block(3, 4), *head, nn.Linear(5, 3)))


def in_training_mode(model: nn.Module, batches) -> nn.Module:
    """The oracle for equal batches: torch's own cumulative average."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for batch in batches:
        model(batch)
    return model


def test_equal_batches_are_torchs_own_average_bit_for_bit():
    model, batches = classifier(), torch.randn(40, 3, 8, 8).split(8)
    expected = in_training_mode(model, batches)
    recalibrate(model, batches)
    assert_same_state(model.state_dict(), expected.state_dict())


def test_two_odd_images_weigh_as_two_images():
    model = classifier()
    images, odd = torch.randn(98, 3, 8, 8), torch.full((2, 3, 8, 8), 50.0)
    recalibrate(model, [images, odd])
    maps = [F.conv2d(x, model[0].weight, model[0].bias, 1, model[0].padding) for x in (images, odd)]
    expected = 0.98 * maps[0].mean((0, 2, 3)) + 0.02 * maps[1].mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, expected)


def test_a_last_batch_of_one_image_where_the_map_is_one_pixel():
    model = classifier()
    whole, rest = copy.deepcopy(model), copy.deepcopy(model)
    recalibrate(rest, [X])
    recalibrate(whole, [X, X[:1]])
    assert torch.equal(whole[5].running_mean, rest[5].running_mean)  # one value: no variance
    assert not torch.equal(whole[1].running_mean, rest[1].running_mean)  # a map has one
    assert all(b.isfinite().all() for b in whole.buffers())


def test_single_values_alone_are_refused():
    model = classifier()
    before = state(model)
    with pytest.raises(ValueError, match="'5' reads one value per channel in every batch"):
        recalibrate(model, X.split(1))
    assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_arent_finite_are_named(value):
    model, bad = classifier(), X.clone()
    before = state(model)
    bad[4, 1, 2, 3] = value
    with pytest.raises(ValueError, match="'1' meets NaN .* image 5 of batch 2 holds it"):
        recalibrate(model, [X, bad])
    assert_same_state(model.state_dict(), before)


def test_the_first_layer_that_gives_nan_is_named():
    model = classifier()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    before = state(model)
    with pytest.raises(ValueError, match="'5' meets NaN .* '4' is the first layer that gives it"):
        recalibrate(model, [X])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7))


def failing(error: BaseException):
    yield X
    raise error


@pytest.mark.parametrize(
    "batches",
    [
        lambda: [X, torch.randn(2, 7, 8, 8)],
        lambda: failing(OSError("the disk is gone")),
        lambda: failing(KeyboardInterrupt()),
        lambda: [X, (X, X, X)],
    ],
    ids=["shape", "disk", "ctrl-c", "entries"],
)
def test_whatever_fails_leaves_the_network_as_it_was(batches):
    model = classifier().train()
    before = state(model)
    flags = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
    with pytest.raises(BaseException):  # noqa: B017
        recalibrate(model, batches())
    assert_same_state(model.state_dict(), before)
    assert flags == [(m.training, getattr(m, "momentum", None)) for m in model.modules()]


def test_statistics_too_large_for_their_type_are_refused():
    model = chain(nn.BatchNorm1d(2)).half()
    with pytest.raises(ValueError, match="running_var' .* too large for torch.float16"):
        recalibrate(model, [torch.tensor([[6e4, 1.0], [-6e4, 2.0]]).half()])
    assert model[0].running_var.tolist() == [1, 1]


class Takes(nn.Module):
    """One norm behind all inputs; `forward` is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(3, 4), nn.BatchNorm2d(4)

    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class One(Takes):
    def forward(self, x):
        return self.features(x)


class Two(Takes):
    def forward(self, a, b):
        return self.features(a - b)


class Optional(Takes):
    def forward(self, x, other=None):
        return self.features(x if other is None else x - other)


class Any(Takes):
    def forward(self, *inputs):
        return self.features(sum(inputs))


class Keyword(Takes):
    def forward(self, x, *, flip=False):
        return self.features(x.flip(-1).relu() if flip else x)


class Dictionary(Takes):
    def forward(self, given):
        return self.features(given["image"])


Y = X.flip(0)
ACCEPTED = {
    "a tensor": (One, X, X),
    "a tuple of one": (One, (X,), X),
    "a list of one": (One, [X], X),
    "images and labels": (One, [X, LABELS], X),
    "images and targets that look like images": (One, (X, Y), X),
    "images and words": (One, (X, ["a"] * 6), X),
    "two inputs": (Two, (X, Y), X - Y),
    "two inputs and labels": (Two, (X, Y, LABELS), X - Y),
    "an optional input": (Optional, (X, Y), X - Y),
    "labels where there might be an input": (Optional, (X, LABELS), X),
    "any number of inputs": (Any, (X, Y, X), X + Y + X),
    "any number and labels": (Any, (X, Y, LABELS), X + Y),
    "args": (Optional, {"args": (X, Y)}, X - Y),
    "keywords": (Keyword, {"args": (X,), "kwargs": {"flip": True}}, X.flip(-1).relu()),
    "keywords alone": (Two, {"kwargs": {"a": X, "b": Y}}, X - Y),
    "a dictionary": (Dictionary, {"image": X}, X),
    "a dictionary and labels": (Dictionary, ({"image": X}, LABELS), X),
}


@pytest.mark.parametrize("name", list(ACCEPTED))
def test_batches_are_what_trace_takes_and_labels_may_follow(name):
    kind, batch, seen = ACCEPTED[name]
    torch.manual_seed(0)
    model, plain = kind(), One()
    plain.load_state_dict(model.state_dict())
    recalibrate(model, [batch, batch])
    recalibrate(plain, [seen, seen])
    assert_same_state(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([(X, X, X)], "a batch has 3 entries, but forward takes 1, and labels may follow"),
        (X, "give a list of them"),
        ({"args": (X,)}, "give a list of them"),
        ([], "at least one batch"),
        ([X[:0]], "at least one batch"),
    ],
)
def test_other_batches_are_refused(batches, words):
    with pytest.raises(ValueError, match=words):
        recalibrate(One(), batches)


def test_batches_without_images_are_left_out():
    a, b = One(), One()
    b.load_state_dict(a.state_dict())
    recalibrate(a, [X[:0], X])
    recalibrate(b, [X])
    assert_same_state(a.state_dict(), b.state_dict())


def test_norms_that_nobody_calls_keep_their_statistics():
    model = One()
    model.auxiliary = nn.BatchNorm2d(4)
    randomise(model)
    before = state(model.auxiliary)
    recalibrate(model, [X])
    assert_same_state(model.auxiliary.state_dict(), before)


def test_a_shared_norm_averages_over_all_of_its_calls():
    class Shared(Takes):
        def forward(self, a, b):
            return self.features(a), self.features(b)

    model, plain = Shared(), One()
    plain.load_state_dict(model.state_dict())
    recalibrate(model, [(X, Y[:2]), (Y, X)])
    recalibrate(plain, [X, Y[:2], Y, X])
    assert torch.equal(model.bn.running_mean, plain.bn.running_mean)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gamma = conv(3, 4), nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4))

    def forward(self, x):
        return F.batch_norm(self.conv(x), self.mean, self.var, self.gamma, training=self.training)


class OwnNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        training = self.training or self.running_mean is None
        y = F.batch_norm(
            *(x, self.running_mean, self.running_var, self.weight, self.bias),
            *(training, self.momentum or 0.0, self.eps),
        )
        return y.relu()


def test_norms_of_any_form_are_estimated():
    plain, functional, own = One(), Functional(), One()
    own.bn = OwnNorm(4)
    for model in (functional, own):
        model.conv.load_state_dict(plain.conv.state_dict())
    for model in (plain, functional, own):
        recalibrate(model, [X, Y[:3]])
    for mean, var in ((functional.mean, functional.var), (own.bn.running_mean, own.bn.running_var)):
        assert torch.equal(mean, plain.bn.running_mean) and torch.equal(var, plain.bn.running_var)


def test_dropout_draws_nothing_and_nothing_else_changes():
    model = chain(*block(3, 4), nn.Dropout(0.5), nn.BatchNorm2d(4)).train()
    draws, parameters = torch.get_rng_state(), copy.deepcopy(dict(model.named_parameters()))
    recalibrate(model, itertools.repeat(X, 3))
    assert torch.equal(draws, torch.get_rng_state())
    assert_same_state(dict(model.named_parameters()), parameters)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
