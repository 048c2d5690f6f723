"""Class folders: what is read, in which order, and the file that spares decoding them again."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from pictures import changed, write_images
from utils.data import folders
from utils.data.sets import imagefolder


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


def test_images_in_folders_of_a_class_are_read_in_the_order_of_imagefolder(tree, decoded):
    for k, inside in enumerate(("images", "images/old", "images-b", ".hidden", "empty")):
        write_images(tree / "train" / "cat" / inside, int(inside != "empty"), seed=k)
        write_images(tree / "train" / "eel" / inside, int(inside != "empty"), seed=9 + k)
    write_images(tree / "test" / "eel" / "deep" / "deeper", 2)
    (tree / "train" / "dog" / "again").symlink_to(tree / "train" / "eel" / "images")
    (tree / "train" / "dog" / "endless").symlink_to(tree / "train" / "dog")
    train = folders.scan(tree / "train")
    (tree / "train" / "dog" / "endless").unlink()  # ImageFolder follows it to the end
    theirs = ImageFolder(str(tree / "train")).samples
    theirs = [(path, label) for path, label in theirs if ".hidden" not in path]
    assert [str(train.folder / name) for name in train.files] == [path for path, _ in theirs]
    assert train.labels.tolist() == [label for _, label in theirs]
    data = imagefolder(root=str(tree))
    assert len(data.train) == len(theirs) and data.test.labels.tolist().count(2) == 2
    decoded.clear()
    changed(tree / "train" / "cat" / "images" / "old" / "000.png")
    assert imagefolder(root=str(tree)).fingerprint == data.fingerprint and len(decoded) > 0


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
