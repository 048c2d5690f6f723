"""The standard data sets: torchvision's files or class folders, and what is said without them."""

import inspect
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate

from door import config
from pictures import write_images
from utils.cli.configured import plain
from utils.data import sets as datasets
from utils.data.load import load_data
from utils.data.sets import Split, cifar10, digits, fake, mnist, svhn

ROOT = Path(__file__).resolve().parents[2]


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

    monkeypatch.setattr(f"utils.data.sources.{name.rstrip('10')}", offline)
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


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("fake", {"flip": "maybe"}, "data.flip is true or false; got 'maybe'"),
        ("fake", {"val_size": 0.1}, "data.val_size is a whole number; got 0.1"),
        ("fake", {"num_train": "abc"}, "data.num_train is a whole number"),
        ("cifar10", {"download": "yes please"}, "data.download is true or false"),
        ("imagefolder", {"root": "x", "size": "big"}, "data.size is a whole number, or null"),
        ("imagenet", {"root": "x", "color": "yes"}, "data.color is true or false"),
        ("digits", {"root": "x"}, "data=digits: .*unexpected keyword argument 'root'"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(name, option, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_data({"_target_": f"utils.data.{name}", **option}, torch.device("cpu"))


def test_a_standard_data_set_is_found_from_above_and_from_within(tree):
    cifar = tree.rename(tree.with_name("cifar10"))
    found = {cifar10(root=str(root)).fingerprint for root in (cifar.parent, cifar)}
    pets = cifar.rename(cifar.with_name("imagefolder"))
    found |= {datasets.imagefolder(root=str(root)).fingerprint for root in (pets.parent, pets)}
    assert len(found) == 1
    other = pets.rename(pets.with_name("photos"))  # any folder with train/ and test/ in it
    assert cifar10(root=str(other)).fingerprint in found


def test_what_classes_are_called_changes_nothing(tree):
    before = datasets.imagefolder(root=str(tree), pad=0).fingerprint
    for split in ("train", "test"):
        (tree / split / "dog").rename(tree / split / "dogs")
    assert datasets.imagefolder(root=str(tree), pad=0).fingerprint == before
    assert datasets.imagefolder(root=str(tree), pad=0, pad_raw=True).fingerprint == before
    assert datasets.imagefolder(root=str(tree), pad=1, pad_raw=True).fingerprint != before


def test_impossible_fake_data_is_refused():
    with pytest.raises(ValueError, match="num_classes=1"):
        fake(num_classes=1)


CONFIGS = sorted((ROOT / "conf" / "data").glob("*.yaml"))
# Of these more is known than what holds for every data set; imagenet: tests/data/test_streaming.py.
KNOWN = ("cifar10", "cifar100", "digits", "fake", "imagefolder", "mnist", "svhn")
IN_MEMORY = [path for path in CONFIGS if path.stem in KNOWN]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_data_set_is_sound_or_says_which_files_it_wants(path, tmp_path):
    said = plain(config("train", f"data={path.stem}").data)
    if "root" in said:
        with pytest.raises(OSError, match=str(tmp_path)):
            load_data(said | {"root": str(tmp_path)}, torch.device("cpu"))
        return
    data = load_data(said, torch.device("cpu"))
    assert instantiate(said).fingerprint == data.fingerprint, "the same images at every start"
    for split in (data.train, data.test):
        assert split.images.shape == (len(split.labels), *data.input_shape)
    images, labels = next(data.train_batches(8, seed=0, epoch=0))
    assert images.shape == (8, *data.input_shape) and images.isfinite().all() and len(labels) == 8


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


def images(number: int, **options) -> Split:
    return Split(
        torch.zeros(number, 1, 4, 4, dtype=torch.uint8), torch.arange(number) % 2, **options
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s: Split(s.images.float() / 255, s.labels), "uint8 .*got torch.float32"),
        (lambda s: Split(s.images[:, 0], s.labels), r"\(N, C, H, W\).*got .*\(6, 4, 4\)"),
        (lambda s: Split(s.images, s.labels[:5]), "6 images, but 5 labels"),
        (lambda s: Split(s.images, s.labels + 1), "labels are from 0 to 1.*from 1 to 2"),
        (lambda s: Split(s.images[:0], s.labels[:0]), "has no images to test on"),
    ],
)
def test_images_of_ones_own_are_looked_at_before_anything_is_trained(wrong, said):
    sound = images(6)
    with pytest.raises(ValueError, match=said):
        datasets.build("mine", sound, wrong(sound), ("a", "b"))
    assert len(datasets.build("mine", sound, sound, ("a", "b")).test) == 6


def test_an_option_without_a_default_has_to_be_said():
    with pytest.raises(ValueError, match="data.root has no default: say data.root=..."):
        load_data({"_target_": "utils.data.imagefolder", "root": "???"}, torch.device("cpu"))


def test_only_what_says_that_it_makes_data_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    text = "from utils.data.sets import Data, fake\n\n\ndef birds(){}:\n    return fake()\n"
    (tmp_path / "a_birds.py").write_text(text.format(" -> Data"))
    (tmp_path / "b_birds.py").write_text(text.format(""))
    (tmp_path / "c_birds.py").write_text("import nowhere_to_be_found\n")
    cpu = torch.device("cpu")
    assert load_data({"_target_": "utils.data.sets.a_birds.birds"}, cpu).name == "fake"
    for target in ("a_birds.fake", "a_birds.Data", "b_birds.birds", "d_birds.birds", "build"):
        with pytest.raises(ValueError, match="none of our data sets"):
            load_data({"_target_": f"utils.data.sets.{target}"}, cpu)
    with pytest.raises(ValueError, match="needs a package: No module named 'nowhere_to_be_found'"):
        load_data({"_target_": "utils.data.sets.c_birds.birds"}, cpu)
