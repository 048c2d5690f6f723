"""The data layer: batches that depend on (seed, epoch, step) only, and wrong input in plain words.

Nothing here needs a network, a data set on disk, or a clock.
"""

import inspect
import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

from utils import data as datasets
from utils import folders
from utils.augment import augment, channel_stats, normalise
from utils.data import cifar10, digits, fake, imagefolder, mnist, svhn
from utils.seeding import mix

ROOT = Path(__file__).resolve().parents[1]


def equal(a, b) -> bool:
    """Two lists of batches, bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(i, j) for (x, i), (y, j) in zip(a, b, strict=True)
    )


def write_images(folder: Path, n: int, *, mode="RGB", size=(32, 32), seed=0, suffix=".png"):
    """n noise images of (width, height) `size`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(n):
        pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}{suffix}")


def changed(path: Path) -> None:
    """Move a file's time of change: two writes in one tick of the disk's clock look the same."""
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now + 10**9))


@pytest.fixture
def tree(tmp_path) -> Path:
    """root/train and root/test with two classes; 4 + 2 images per class."""
    for split, n in (("train", 4), ("test", 2)):
        for seed, name in enumerate(("cat", "dog")):
            write_images(tmp_path / "pets" / split / name, n, seed=seed + 10 * n)
    return tmp_path / "pets"


# Seeds


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
    assert len(fake(val_size=255).train) == 1


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


def test_one_pixel_label_or_class_name_changes_the_fingerprint():
    train, test = (fake(num_train=40, size=8).train for _ in range(2))
    names = tuple("0123456789")
    before = datasets._build("x", train, test, names).fingerprint
    assert datasets._build("y", train, test, names).fingerprint == before
    assert datasets._build("x", train, test, tuple("a123456789")).fingerprint != before
    for tensor in (test.images, train.images, test.labels, train.labels):
        tensor.flatten()[7] += 1  # mean and deviation are rounded: they do not give it away
        assert datasets._build("x", train, test, names).fingerprint != before
        tensor.flatten()[7] -= 1
    assert datasets._build("x", train, test, names).fingerprint == before


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


# The cache beside a tree


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The paths that were decoded, as they are decoded."""
    paths, decode = [], folders.decode

    def counting(path, *rest):
        paths.append(path)
        return decode(path, *rest)

    monkeypatch.setattr(folders, "decode", counting)
    return paths


def test_a_second_load_decodes_nothing_and_is_equal(tree, decoded):
    first = imagefolder(root=str(tree))
    assert {path.name for path in decoded} == {"000.png", "001.png", "002.png", "003.png"}
    cache = tree / "train" / folders.CACHE
    written = cache.stat().st_mtime_ns, cache.stat().st_ino
    decoded.clear()
    again = imagefolder(root=str(tree))
    assert decoded == []
    assert (cache.stat().st_mtime_ns, cache.stat().st_ino) == written
    assert torch.equal(again.train.images, first.train.images)
    assert again.fingerprint == first.fingerprint


def test_a_changed_tree_is_decoded_again(tree, decoded):
    imagefolder(root=str(tree))
    cat = tree / "train" / "cat"
    for change in (
        lambda: changed(cat / "001.png"),
        lambda: (cat / "003.png").unlink(),
        lambda: (cat / "000.png").rename(cat / "zzz.png"),
        lambda: write_images(cat, 1),
    ):
        decoded.clear()
        change()
        images = imagefolder(root=str(tree)).train.images
        assert len({path for path in decoded if "train" in path.parts}) == len(images)
        assert not any("test" in path.parts for path in decoded)


def test_other_decode_options_are_decoded_again(tree, decoded):
    assert imagefolder(root=str(tree)).input_shape == (3, 32, 32)
    assert imagefolder(root=str(tree), channels=1).input_shape == (1, 32, 32)
    assert imagefolder(root=str(tree), size=16).input_shape == (3, 16, 16)
    assert imagefolder(root=str(tree)).input_shape == (3, 32, 32)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "foreign"])
def test_a_damaged_or_foreign_cache_is_rebuilt(tree, decoded, damage, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "code was run",)

    before = imagefolder(root=str(tree)).fingerprint
    cache = tree / "train" / folders.CACHE
    if damage == "foreign":
        torch.save({"images": torch.zeros(3)}, cache)
    else:
        half = cache.read_bytes()[: cache.stat().st_size // 2]
        evil = pickle.dumps(Evil(), 2)
        harm = {"truncated": half, "empty": b"", "text": b"hello", "pickle": evil}
        cache.write_bytes(harm[damage])
    decoded.clear()
    assert imagefolder(root=str(tree)).fingerprint == before
    assert decoded
    assert not (tmp_path / "code was run").exists()
    decoded.clear()
    imagefolder(root=str(tree))
    assert decoded == []


def test_a_folder_that_cannot_be_written_is_said_and_survived(tree, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "replace", refuse)
    assert len(imagefolder(root=str(tree)).train) == 8
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "could not be kept in" in said[0]
    assert "Permission denied" in said[0]
    assert not list(tree.rglob(".decoded*")), "no half-written file is left"


def test_many_images_are_announced_in_one_line(tree, monkeypatch, capsys):
    monkeypatch.setattr(folders, "MANY", 5)
    imagefolder(root=str(tree))
    assert capsys.readouterr().err.startswith(f"Decoding 8 images of {tree / 'train'} (only this")


# Class folders


def test_classes_and_files_are_sorted_and_other_files_ignored(tree):
    write_images(tree / "train" / "Ant", 1, suffix=".BMP")
    write_images(tree / "test" / "Ant", 1)
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "cat" / ".hidden.png").write_text("no image")
    (tree / "train" / ".git").mkdir()
    (tree / "train" / "README.md").write_text("no class")
    data = imagefolder(root=str(tree))
    assert data.classes == ("Ant", "cat", "dog")
    assert data.train.labels.tolist() == [0] + 4 * [1] + 4 * [2]
    want = np.asarray(Image.open(tree / "train" / "cat" / "001.png"))
    assert np.array_equal(data.train.images[2].permute(1, 2, 0).numpy(), want)


def test_grey_alpha_and_palette_images_become_rgb(tree, recwarn):
    cat = tree / "train" / "cat"
    shutil.rmtree(cat)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        write_images(cat, 1, mode=mode, suffix=f"-{mode}.png")
    with Image.open(cat / "000-P.png") as palette:
        palette.save(cat / "000-P-transparent.png", transparency=bytes(range(256)))
    data = imagefolder(root=str(tree))
    assert data.train.images.shape == (6 + 4, 3, 32, 32)
    for grey in data.train.images[:3]:
        assert torch.equal(grey[0], grey[1])
    for path, image in zip(sorted(cat.glob("*.png")), data.train.images, strict=False):
        want = np.asarray(Image.open(path).convert("RGBA"))[..., :3]
        assert np.array_equal(image.permute(1, 2, 0), want)
    assert imagefolder(root=str(tree), channels=1).input_shape == (1, 32, 32)
    assert not recwarn.list


def test_size_resizes_the_shorter_side_and_crops_the_centre(tree):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # exactly the centre square
    Image.fromarray(wide).save(tree / "train" / "cat" / "000.png")
    Image.fromarray(wide.transpose(1, 0, 2).copy()).save(tree / "train" / "cat" / "001.png")
    for size in (20, 10, 40):
        data = imagefolder(root=str(tree), size=size)
        assert data.input_shape == (3, size, size)
        inner = data.train.images[:2, :, 2:-2, 2:-2]
        assert (inner == 200).all()


def test_val_and_test_folders(tree):
    assert len(imagefolder(root=str(tree)).val) == 0
    shutil.copytree(tree / "test", tree / "val")
    write_images(tree / "val" / "cat", 3, seed=5)
    data = imagefolder(root=str(tree))
    assert (len(data.train), len(data.val), len(data.test)) == (8, 5, 4)
    with pytest.raises(ValueError, match="val_size must be 0, got 2: .*val is the validation"):
        imagefolder(root=str(tree), val_size=2)
    shutil.rmtree(tree / "test")
    data = imagefolder(root=str(tree), val_size=2)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 5)


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((32, 32), 60000, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken, r"dog/001.png can't be used as an image .*; replace it or delete it"),
        (lambda path: path.write_text("hello"), r"dog/001.png can't be used as an image"),
        (sixteen_bit, r"dog/001.png can't be used .*more than 8 bits"),
        (
            lambda path: write_images(path.parent, 2, size=(30, 32)),
            r"dog/000.png has 32x30 pixels .* must have 32x32; .*data.size=",
        ),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tree, spoil, message):
    spoil(tree / "train" / "dog" / "001.png")
    with pytest.raises(ValueError, match=message):
        imagefolder(root=str(tree))


def test_test_images_must_have_the_size_of_the_training_images(tree):
    write_images(tree / "test" / "dog", 1, size=(16, 16))
    with pytest.raises(ValueError, match=r"test/dog/000.png has 16x16 .* 32x32; .*data.size="):
        imagefolder(root=str(tree))
    assert imagefolder(root=str(tree), size=16).input_shape == (3, 16, 16)


def test_a_tree_that_is_no_data_set_is_explained(tree):
    (tree / "train" / "eel").mkdir()
    with pytest.raises(ValueError, match="class folder .*eel holds no images .*delete it"):
        imagefolder(root=str(tree))
    write_images(tree / "train" / "eel", 1)
    with pytest.raises(ValueError, match="test and .*train must hold the same classes; .*: eel$"):
        imagefolder(root=str(tree))
    shutil.rmtree(tree / "train" / "eel")
    shutil.rmtree(tree / "train" / "dog")
    with pytest.raises(ValueError, match="only the class folder cat; .*>= 2"):
        imagefolder(root=str(tree))
    shutil.rmtree(tree / "train" / "cat")
    with pytest.raises(ValueError, match="train holds no class folders"):
        imagefolder(root=str(tree))


def test_impossible_options_of_imagefolder_are_refused(tree):
    with pytest.raises(ValueError, match="data.channels is 3 .* or 1 .*; got 4"):
        imagefolder(root=str(tree), channels=4)
    with pytest.raises(ValueError, match="data.size .*; got 0"):
        imagefolder(root=str(tree), size=0)


def test_missing_folders_are_named(tmp_path):
    for part in ("nothing", "train"):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path} needs train/.*data.root="):
            imagefolder(root=str(tmp_path))
        (tmp_path / part).mkdir()


# The standard data sets

STANDARD = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "train_32x32.mat",
    "mnist": "MNIST/raw",
}


@pytest.mark.parametrize("name", STANDARD)
def test_a_missing_data_set_says_where_it_was_sought_and_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # None in sys.modules forbids the import: the message must not wait for it.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FileNotFoundError) as error:
        getattr(datasets, name)()
    text = str(error.value)
    for words in (STANDARD[name], f"{tmp_path}/data/{name}", "data.download=true", "data.root="):
        assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("name", STANDARD)
def test_a_download_without_network_is_one_sentence(name, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("<urlopen error\nno network>")

    monkeypatch.setattr(f"utils.sources.{name.rstrip('10')}", offline)
    with pytest.raises(OSError) as error:
        getattr(datasets, name)(root=str(tmp_path), download=True)
    text = str(error.value)
    assert text.startswith(f"{name} could not be downloaded (<urlopen error no network>)")
    assert f"{tmp_path / name}" in text


def test_damaged_files_of_torchvision_are_one_sentence(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(OSError, match="cifar10 could not be read .*: delete .*batches-py if"):
        cifar10(root=str(tmp_path))


def test_what_a_failed_download_leaves_behind_does_not_hide_class_folders(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for split in ("train", "test"):
        for name in "01":
            write_images(tmp_path / "mnist" / split / name, 2, size=(28, 28))
    assert len(mnist(root=str(tmp_path)).train) == 4


def test_cifar_as_torchvision_stores_it_comes_before_folders(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    # The real files are recognised by their MD5, which five made-up ones can't have.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [*names, "truck"]}))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, file in enumerate(files):
        (base / file).write_bytes(pickle.dumps({"data": pixels[i], "labels": [i, 9]}))
    write_images(tmp_path / "cifar10" / "train" / "a", 1)  # not even looked at
    data = cifar10(root=str(tmp_path))
    assert (len(data.train), len(data.test), data.num_classes) == (10, 2, 10)
    assert data.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert np.array_equal(data.train.images[2].numpy(), pixels[1, 0].reshape(3, 32, 32))


def test_svhn_as_torchvision_stores_it(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda _: True)  # MD5 again
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for i, split in enumerate(("train", "extra", "test")):
        labels = np.array([[1], [2], [10], [4 + i]], np.uint8)  # the file's 10 is the digit 0
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels + np.uint8(i), "y": labels})
    data = svhn(root=str(tmp_path))
    assert data.train.labels.tolist() == [1, 2, 0, 4, 1, 2, 0, 5]
    assert data.test.labels.tolist() == [1, 2, 0, 6]
    first_extra = (pixels[..., 0] + np.uint8(1)).transpose(2, 0, 1)
    assert np.array_equal(data.train.images[4].numpy(), first_extra)


def test_mnist_as_torchvision_stores_it(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        # The IDX format: two zeros, type 8 (bytes), dimensions, then every length in four bytes.
        lengths = b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + lengths + pixels.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + lengths[:4] + b"\7\0\2")
    data = mnist(root=str(tmp_path))
    assert data.train.labels.tolist() == data.test.labels.tolist() == [7, 0, 2]
    assert np.array_equal(data.train.images[:, 0].numpy(), pixels)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + lengths)
    with pytest.raises(OSError, match="mnist could not be read"):
        mnist(root=str(tmp_path))


def test_cifar_as_class_folders(tree):
    data = cifar10(root=str(tree.rename(tree.with_name("cifar10")).parent), val_size=2)
    assert (data.name, len(data.train), len(data.val), len(data.test)) == ("cifar10", 6, 2, 4)
    assert (data.pad, data.flip, data.pad_raw, data.input_shape) == (4, True, False, (3, 32, 32))


def test_cifar_images_of_another_size_are_refused(tree):
    write_images(tree / "train" / "cat", 4, size=(28, 28))
    root = str(tree.rename(tree.with_name("cifar10")).parent)
    with pytest.raises(ValueError, match=r"cat/000.png has 28x28 .* must have 32x32; data=imagef"):
        cifar10(root=root)


def test_a_standard_tree_without_test_images_says_so(tree):
    shutil.rmtree(tree / "test")
    root = str(tree.rename(tree.with_name("cifar10")).parent)
    with pytest.raises(FileNotFoundError, match="no folder .*cifar10/test; put"):
        cifar10(root=root)


def test_svhn_joins_extra_and_mnist_is_grey(tree, tmp_path):
    shutil.copytree(tree / "test", tree / "extra")
    tree = tree.rename(tmp_path / "svhn")
    data = svhn(root=str(tmp_path))
    assert (len(data.train), len(data.test)) == (12, 4)
    assert torch.equal(data.train.images[8:], data.test.images)
    assert (data.pad, data.flip) == (0, False)
    shutil.rmtree(tree / "extra")
    assert len(svhn(root=str(tmp_path)).train) == 8

    for split in ("train", "test"):
        for seed, name in enumerate("01"):
            write_images(tmp_path / "mnist" / split / name, 2, size=(28, 28), seed=seed)
    data = mnist(root=str(tmp_path))
    assert (data.input_shape, data.pad, data.flip) == ((1, 28, 28), 0, False)
    assert mnist(root=str(tmp_path), pad=2).pad == 2


def test_digits_have_a_fixed_stratified_test_set():
    data = digits()
    assert (len(data.train), len(data.val), len(data.test)) == (1000, 0, 797)
    assert (data.input_shape, data.num_classes) == ((1, 8, 8), 10)
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)
    assert data.test.labels.bincount().tolist() == [79, 81, 79, 81, 80, 81, 80, 79, 77, 80]
    assert (data.pad, data.flip) == (1, False)


def test_fake_data_can_be_learned():
    data = fake(num_train=200, num_test=100)
    (x, y), *_ = data.eval_batches(data.train)
    (test_x, test_y), *_ = data.eval_batches(data.test)
    centres = torch.stack([x[y == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test_x.flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == test_y).float().mean() > 0.9
    # The labels carry it, not the pixels' order: another draw of patterns is of no help.
    other = fake(num_train=200, num_test=100, seed=1)
    (test_x, test_y), *_ = other.eval_batches(other.test)
    nearest = torch.cdist(test_x.flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == test_y).float().mean() < 0.5


def test_impossible_fake_data_is_refused():
    with pytest.raises(ValueError, match="num_classes=1"):
        fake(num_classes=1)


IN_MEMORY = [
    path
    for path in sorted((ROOT / "conf" / "data").glob("*.yaml"))
    if "_target_: utils.data." in path.read_text()  # the others: tests/test_streaming.py
]


@pytest.mark.parametrize("path", IN_MEMORY, ids=lambda path: path.stem)
def test_a_config_names_every_option_and_its_default(path, tree, monkeypatch):
    config = yaml.safe_load(path.read_text())
    assert config.pop("_target_") == f"utils.data.{path.stem}"
    made = fake()
    monkeypatch.setattr(
        datasets.sources, "find", lambda *_, **__: (made.train, made.test, made.classes)
    )
    function = getattr(datasets, path.stem)
    own = inspect.signature(function).parameters
    assert set(config) == set(own) - {"options"} | set(datasets.Options.__annotations__)
    for key in set(own) & set(config):
        assert own[key].default in (config[key], inspect.Parameter.empty)
    root = {"root": str(tree)} if "root" in own else {}
    # Equal fingerprints: the same images, split, augmentation.
    assert function(**config | root).fingerprint == function(**root).fingerprint
