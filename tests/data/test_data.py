"""The data layer: batches that depend on (seed, epoch, step) only, and wrong input in plain words.

Nothing here needs a network, a data set on disk, or a clock.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pictures import changed, equal
from utils.data import sets as datasets
from utils.data.augment import augment, channel_stats, normalise
from utils.data.seeding import mix
from utils.data.sets import digits, fake, imagefolder
from utils.data.sources import Split
from utils.data.splits import set_aside


def test_mix_is_a_fixed_function_of_its_parts():
    assert mix(0, 1, "order") == mix(0, 1, "order")
    different = {mix(0, 1), mix(1, 0), mix(1), mix("1"), mix("0", 1), mix(0, 1, 0), mix()}
    assert len(different) == 7
    assert all(0 <= value < 2**63 for value in different)
    # Written down, because a change would change every result that was ever measured.
    assert mix(0, 0, "order") == 1032940369555473002


# Augmentation


def draws(n: int, pad: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(2 * pad + 1, (2, n), generator=generator)
    return offsets.T.tolist(), torch.randint(2, (n,), generator=generator).bool().tolist()


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad_raw", [False, True])
def test_augment_equals_a_slow_reference_per_image(pad, flip, pad_raw):
    images = torch.randint(0, 256, (17, 3, 9, 7), dtype=torch.uint8)
    mean, std = torch.tensor([120.0, 90.0, 30.0]), torch.tensor([60.0, 50.0, 40.0])
    generator = torch.Generator().manual_seed(3)
    got = augment(images, mean, std, pad=pad, flip=flip, pad_raw=pad_raw, generator=generator)
    assert got.dtype == torch.float32
    for i, ((dy, dx), mirrored) in enumerate(zip(*draws(17, pad, 3), strict=True)):
        canvas = torch.zeros(3, 9 + 2 * pad, 7 + 2 * pad)
        if pad_raw:
            canvas -= (mean / std).view(3, 1, 1)
        scaled = (images[i].float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        canvas[:, pad : pad + 9, pad : pad + 7] = scaled
        want = canvas[:, dy : dy + 9, dx : dx + 7]
        assert_close(got[i], want.flip(2) if flip and mirrored else want)


@pytest.mark.parametrize("pad_raw", [False, True])
def test_the_border_is_zero_after_normalising_or_black_before(pad_raw):
    white = torch.full((64, 1, 8, 8), 255, dtype=torch.uint8)
    mean, std = torch.tensor([100.0]), torch.tensor([50.0])
    generator = torch.Generator().manual_seed(0)
    out = augment(white, mean, std, pad=2, flip=True, pad_raw=pad_raw, generator=generator)
    assert sorted(out.unique().tolist()) == [-2.0 if pad_raw else 0.0, pytest.approx(3.1)]


def test_every_offset_is_used_and_about_half_of_the_images_are_mirrored():
    # One bright pixel in the middle shows where each crop was taken.
    images = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 255
    options = {"pad": 2, "flip": False, "pad_raw": False}
    one = torch.ones(1)
    out = augment(images, 0 * one, one, generator=torch.Generator().manual_seed(0), **options)
    counts = (out[:, 0] > 0).sum(0)
    assert counts.sum() == 4000
    assert (counts > 100).all()  # 25 places, 160 expected in each

    images = torch.arange(5, dtype=torch.uint8).expand(1000, 1, 5, 5)
    options = {"pad": 0, "flip": True, "pad_raw": False}
    out = augment(images, 0 * one, one, generator=torch.Generator().manual_seed(0), **options)
    assert 400 < (out[:, 0, 0, 0] == 4).sum() < 600


def test_no_augmentation_means_normalised_images():
    data = fake(num_train=20, pad=0, flip=False)
    (images, labels), *rest = data.train_batches(20, seed=0, epoch=0)
    assert not rest
    plain = normalise(data.train.images, data.mean, data.std)
    key = images.flatten(1).sum(1)
    assert_close(key.sort().values, plain.flatten(1).sum(1).sort().values)


def test_statistics_are_exact_population_values_rounded_to_a_tenth():
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8)  # more than one piece
    images[:, 1] //= 3
    mean, std = channel_stats(images)
    values = images.double().transpose(0, 1).flatten(1)
    assert_close(mean.double(), values.mean(1), atol=0.0501, rtol=0)
    assert_close(std.double(), values.std(1, correction=0), atol=0.0501, rtol=0)
    assert mean.tolist() == torch.tensor([round(x, 1) for x in mean.tolist()]).tolist()
    # 0, 0, 0, 255: mean 63.75, deviation 255 * sqrt(3) / 4 = 110.418
    mean, std = channel_stats(torch.tensor([0, 0, 0, 255], dtype=torch.uint8).view(1, 1, 2, 2))
    assert [round(mean.item(), 4), round(std.item(), 4)] == [63.8, 110.4]


def test_a_constant_channel_is_shifted_and_not_scaled():
    mean, std = channel_stats(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8))
    assert (mean.item(), std.item()) == (7.0, 1.0)


# Batches


def test_batches_depend_on_seed_epoch_and_step_only():
    data = fake(num_train=100)
    batches = list(data.train_batches(32, seed=1, epoch=2))
    assert equal(batches, list(data.train_batches(32, seed=1, epoch=2)))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        assert not equal(batches, list(data.train_batches(32, seed=seed, epoch=epoch)))


@pytest.mark.parametrize("start", range(5))
def test_start_continues_exactly_where_an_epoch_was_left(start):
    data = fake(num_train=100)
    torch.manual_seed(start)  # neither the global generator nor earlier batches play a part
    whole = list(data.train_batches(32, seed=1, epoch=0))
    assert equal(whole[start:], list(data.train_batches(32, seed=1, epoch=0, start=start)))


def test_the_global_generator_is_left_alone():
    data = fake()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.train_batches(64, seed=0, epoch=0))
    list(data.sample(5, seed=0))
    assert torch.equal(torch.rand(3), expected)


def test_an_epoch_holds_every_image_once_in_another_order():
    data = fake(num_train=100, pad=0, flip=False)
    unique = replace(data, train=replace(data.train, labels=torch.arange(100)))
    orders = [torch.cat([y for _, y in unique.train_batches(32, seed=0, epoch=e)]) for e in (0, 1)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(100))
    assert not torch.equal(*orders)


@pytest.mark.parametrize(
    ("num", "batch", "sizes"),
    [(64, 32, [32, 32]), (66, 32, [32, 32, 2]), (65, 32, [32, 32]), (3, 1, [1, 1, 1]), (5, 9, [5])],
)
def test_the_last_batch_is_kept_unless_it_is_a_single_image(num, batch, sizes):
    data = fake(num_train=num, size=8)
    assert [len(x) for x, _ in data.train_batches(batch, seed=0, epoch=0)] == sizes
    assert data.steps(batch) == len(sizes)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 image; got batch_size 0"):
        fake().steps(0)


def test_evaluation_is_in_order_and_not_augmented():
    data = fake(num_test=100)
    images, labels = map(torch.cat, zip(*data.eval_batches(data.test, 33), strict=True))
    assert torch.equal(labels, data.test.labels)
    assert torch.equal(images, normalise(data.test.images, data.mean, data.std))
    assert list(data.eval_batches(data.val)) == []


def test_a_sample_is_seeded_and_without_replacement():
    data = fake(num_train=50)
    plain = normalise(data.train.images, data.mean, data.std)
    images = torch.cat(list(data.sample(50, seed=0, batch_size=16)))
    matches = (images.flatten(1)[:, None] == plain.flatten(1)[None]).all(2)
    assert (matches.sum(0) == 1).all()
    assert (matches.sum(1) == 1).all()
    assert torch.equal(torch.cat(list(data.sample(9, seed=0))), images[:9])
    assert not torch.equal(torch.cat(list(data.sample(9, seed=1))), images[:9])
    assert list(data.sample(0, seed=0)) == []
    with pytest.raises(ValueError, match="51 training images asked for; there are 50"):
        data.sample(51, seed=0)


def test_a_labelled_sample_has_the_images_of_the_sample_and_their_own_labels():
    data = fake(num_train=50)
    plain = normalise(data.train.images, data.mean, data.std)
    pairs = list(data.labelled(20, seed=3, batch_size=8))
    images, labels = (torch.cat(part) for part in zip(*pairs))
    assert torch.equal(images, torch.cat(list(data.sample(20, seed=3, batch_size=8))))
    found = (images.flatten(1)[:, None] == plain.flatten(1)[None]).all(2).int().argmax(1)
    assert torch.equal(labels, data.train.labels[found])


def test_to_copies_nothing_that_is_there_and_everything_follows_the_device():
    data = fake()
    assert data.to("cpu").train.images.data_ptr() == data.train.images.data_ptr()
    moved = data.to("meta")  # like a GPU, it refuses to be mixed with the CPU
    for images, labels in moved.train_batches(64, seed=0, epoch=0):
        assert images.device.type == labels.device.type == "meta"
    assert next(moved.sample(5, seed=0)).device.type == "meta"
    assert next(moved.eval_batches(moved.test))[0].device.type == "meta"


# The validation split


def test_validation_images_are_taken_out_of_training_exactly_and_in_proportion():
    whole, data = digits(), digits(val_size=101)
    assert (len(data.train), len(data.val), len(data.test)) == (899, 101, 797)
    both = torch.cat([data.train.images, data.val.images]).flatten(1)
    # The same 1000 images, none lost or twice: compared as sorted rows.
    assert sorted(both.tolist()) == sorted(whole.train.images.flatten(1).tolist())
    share = whole.train.labels.bincount() * 101 / 1000
    assert ((data.val.labels.bincount() - share).abs() < 1).all()
    # Normalisation does not depend on the split.
    assert torch.equal(whole.mean, data.mean)
    assert torch.equal(whole.std, data.std)


def test_the_validation_split_follows_split_seed_and_nothing_else():
    a, b, c = digits(val_size=100), digits(val_size=100, pad=0), digits(val_size=100, split_seed=1)
    assert torch.equal(a.val.images, b.val.images)
    assert not torch.equal(a.val.images, c.val.images)
    assert torch.equal(a.test.images, c.test.images)


@pytest.mark.parametrize("val_size", [-1, 256, 1000])
def test_a_validation_split_that_is_no_split_is_refused(val_size):
    with pytest.raises(ValueError, match=f"the 256 training images .* to 255; got {val_size}"):
        fake(val_size=val_size)
    assert len(fake(val_size=246).train) == 10
    with pytest.raises(ValueError, match="val_size=247 takes the last .* 246 of the 256 can be"):
        fake(val_size=247)


@pytest.mark.parametrize("val_size", range(1, 20))
def test_every_class_keeps_a_training_image(val_size):
    labels = torch.tensor([0] + [1] * 2 + [2] * 20 + [4] + [5])
    train, val = set_aside(Split(torch.arange(25), labels), val_size, 0)
    assert len(val) == val_size and sorted([*train.images, *val.images]) == list(range(25))
    assert train.labels.unique().tolist() == [0, 1, 2, 4, 5]


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="0 or more; got -1"):
        fake(pad=-1)


# The fingerprint


def test_the_fingerprint_covers_whatever_can_change_a_result():
    def digest(**options):
        return fake(num_train=40, size=8, **options).fingerprint

    assert digest() == digest()
    others = [{"val_size": 5}, {"val_size": 5, "split_seed": 1}, {"pad": 3}, {"flip": False}]
    others += [{"pad_raw": True}, {"seed": 1}, {"num_classes": 9}, {}]
    assert len({digest(**options) for options in others}) == len(others)


def test_one_pixel_or_label_changes_the_fingerprint_and_no_name_does():
    train, test = (fake(num_train=40, size=8).train for _ in range(2))
    names = tuple("0123456789")
    before = datasets.build("x", train, test, names).fingerprint
    assert datasets.build("y", train, test, names).fingerprint == before
    assert datasets.build("x", train, test, tuple("a123456789")).fingerprint == before
    for tensor in (test.images, train.images, test.labels, train.labels):
        tensor.flatten()[7] += 1  # mean and deviation are rounded: they do not give it away
        assert datasets.build("x", train, test, names).fingerprint != before
        tensor.flatten()[7] -= 1
    assert datasets.build("x", train, test, names).fingerprint == before


def test_the_fingerprint_knows_contents_and_not_paths(tree, tmp_path):
    before = imagefolder(root=str(tree)).fingerprint
    shutil.copytree(tree, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert imagefolder(root=str(tmp_path / "elsewhere")).fingerprint == before
    path = tree / "train" / "dog" / "002.png"
    image = Image.open(path)
    red, green, blue = image.getpixel((3, 4))
    image.putpixel((3, 4), (red ^ 1, green, blue))
    image.save(path)
    changed(path)
    assert imagefolder(root=str(tree)).fingerprint != before
