"""Streamed class folders: the same batches however they are read, killed or shared out."""

import inspect
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

import engine
from door import config
from engine import Interrupted
from slimming.checkpoint import read
from terminal import refusal, terminal
from train import train
from utils.cli import configured
from utils.data import folders, streaming
from utils.data.load import load_data
from utils.data.sets import imagefolder
from utils.data.streaming import imagenet, lighting
from utils.report.groups import differences
from utils.training.hardware import choose

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("ant", "bee", "cow")


def write_photos(folder: Path, n: int, seed: int) -> None:
    """n JPEGs of different sizes; the class can be seen in their colour."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(n):
        shape = (int(draw.integers(20, 40)), int(draw.integers(20, 40)), 3)
        pixels = draw.integers(0, 120, shape, dtype=np.uint8)
        pixels[..., seed % 3] += 120
        Image.fromarray(pixels).save(folder / f"{i:02}.JPEG", quality=90)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """root/train with 3 classes of 11, 10, 9 images, root/val with 4 each; nobody changes it."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        write_photos(root / "train" / name, 11 - label, seed=label)
        write_photos(root / "val" / name, 4, seed=label + 30)
    return root


@pytest.fixture
def copy(photos, tmp_path) -> Path:
    return shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)


def small(root: Path, **options):
    return imagenet(root=str(root), **{"size": 16, "workers": 0, **options})


def whole(batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = map(torch.cat, zip(*batches, strict=True))
    return images, labels


def equal(a, b) -> bool:
    """Two lists of batches, bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(i, j) for (x, i), (y, j) in zip(a, b, strict=True)
    )


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The images that this process decodes, as it does."""
    paths, decode = [], folders.decode

    def counting(path, *rest):
        paths.append("/".join(path.parts[-3:]))
        return decode(path, *rest)

    monkeypatch.setattr(folders, "decode", counting)
    return paths


# Batches


def test_an_epoch_reads_every_image_once_in_another_order(photos, decoded):
    data = small(photos)
    assert decoded == [], "listing a folder reads no image"
    orders = []
    for epoch in (0, 1):
        images, labels = whole(data.train_batches(8, seed=0, epoch=epoch))
        assert images.shape == (30, 3, 16, 16) and images.dtype == torch.float32
        assert [CLASSES.index(name.split("/")[1]) for name in decoded] == labels.tolist()
        assert len(set(decoded)) == 30 and all(name.startswith("train/") for name in decoded)
        orders.append(list(decoded))
        decoded.clear()
    assert orders[0] != orders[1]


def test_the_order_is_that_of_the_same_images_in_memory(photos):
    streamed, held = small(photos), imagefolder(root=str(photos), size=16)
    assert (streamed.classes, streamed.input_shape) == (held.classes, held.input_shape)
    for a, b in (
        (streamed.train_batches(7, seed=3, epoch=2), held.train_batches(7, seed=3, epoch=2)),
        (streamed.eval_batches(streamed.test, 5), held.eval_batches(held.test, 5)),
    ):
        assert [y.tolist() for _, y in a] == [y.tolist() for _, y in b]
    assert streamed.steps(29) == held.steps(29) == 1, "no batch for a single image left over"


@pytest.mark.parametrize("start", range(5))
def test_start_goes_on_exactly_and_reads_nothing_of_what_was_before(photos, decoded, start):
    data = small(photos)
    batches = list(data.train_batches(8, seed=1, epoch=0))
    decoded.clear()
    torch.manual_seed(start)  # neither the global generator nor earlier batches play a part
    assert equal(batches[start:], list(data.train_batches(8, seed=1, epoch=0, start=start)))
    assert len(decoded) == max(0, 30 - 8 * start)


def test_what_an_image_looks_like_depends_on_seed_epoch_and_its_number(photos):
    data = small(photos)

    def looks(batch_size: int, **when: int) -> set[bytes]:
        images, _ = whole(data.train_batches(batch_size, **when))
        return {image.numpy().tobytes() for image in images}

    first = looks(30, seed=0, epoch=0)
    assert looks(4, seed=0, epoch=0) == first
    assert not looks(30, seed=0, epoch=1) & first
    assert not looks(30, seed=1, epoch=0) & first


def test_workers_change_nothing(photos):
    """Also where threads have been at work before the workers are forked."""
    torch.set_num_threads(2)
    try:
        torch.randn(300, 300) @ torch.randn(300, 300)
        alone, helped = small(photos), small(photos, workers=2)
        for read_from in (
            lambda data: data.train_batches(8, seed=0, epoch=0),
            lambda data: data.eval_batches(data.test, 5),
            lambda data: ((images, images) for images in data.sample(20, seed=0, batch_size=8)),
        ):
            torch.manual_seed(7)
            expected = torch.rand(3)
            for data in (alone, helped):
                torch.manual_seed(7)
                batches = list(read_from(data))
                assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
                assert equal(batches, list(read_from(alone)))
    finally:
        torch.set_num_threads(1)


def test_a_process_reads_its_part_of_a_batch_and_nothing_else(photos, decoded):
    data = small(photos)
    batches = list(data.train_batches(8, seed=0, epoch=0))
    decoded.clear()
    parts = [
        list(data.train_batches(8, seed=0, epoch=0, part=which))
        for which in (lambda n: slice(n // 2), lambda n: slice(n // 2, n))
    ]
    assert len(decoded) == 30
    joined = [tuple(map(torch.cat, zip(a, b))) for a, b in zip(*parts)]
    assert equal(joined, batches)


def test_by_default_one_core_is_left_to_the_training(photos, monkeypatch):
    for cores, processes, workers in ((8, 1, 7), (1, 1, 0), (64, 1, 16), (64, 8, 7), (2, 8, 0)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert small(photos, workers=None).workers == workers


def test_workers_outlive_the_signal_that_their_whole_group_gets(photos):
    data = small(photos, workers=2)
    batches = data.train_batches(4, seed=0, epoch=0)
    read_so_far = [next(batches), next(batches)]  # one from each: both are at work
    for number in (signal.SIGINT, signal.SIGTERM):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
    assert len(multiprocessing.active_children()) == 2
    read_so_far += batches
    assert equal(read_so_far, list(small(photos).train_batches(4, seed=0, epoch=0)))
    assert multiprocessing.active_children() == []


def test_workers_end_with_an_epoch_that_is_left_early(photos):
    batches = small(photos, workers=2).train_batches(4, seed=0, epoch=0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_sample_is_seeded_without_replacement_and_seen_as_in_evaluation(photos):
    data = small(photos)
    every, _ = whole(data.eval_batches(data.train))
    images = torch.cat(list(data.sample(30, seed=0, batch_size=7)))
    rows = [image.numpy().tobytes() for image in images]
    assert sorted(rows) == sorted(image.numpy().tobytes() for image in every)
    assert torch.equal(torch.cat(list(data.sample(9, seed=0))), images[:9])
    assert not torch.equal(torch.cat(list(data.sample(9, seed=1))), images[:9])
    assert list(data.sample(0, seed=0)) == []
    with pytest.raises(ValueError, match="31 training images asked for; there are 30"):
        data.sample(31, seed=0)


def test_a_labelled_sample_has_the_images_of_the_sample_and_their_own_labels(photos):
    data = small(photos)
    every, all_labels = whole(data.eval_batches(data.train))
    label_of = {image.numpy().tobytes(): label for image, label in zip(every, all_labels)}
    images, labels = whole(data.labelled(20, seed=3, batch_size=7))
    assert torch.equal(images, torch.cat(list(data.sample(20, seed=3, batch_size=7))))
    for image, label in zip(images, labels, strict=True):
        assert label_of[image.numpy().tobytes()] == label


def test_batches_are_made_where_the_data_were_sent(photos):
    moved = small(photos).to("meta")  # like a GPU, it refuses to be mixed with the CPU
    for images, labels in moved.train_batches(8, seed=0, epoch=0):
        assert images.device.type == labels.device.type == "meta"
    assert next(moved.sample(5, seed=0)).device.type == "meta"


# What is made of an image


@pytest.fixture
def grid(tmp_path) -> Path:
    """One image per class, 256 high and 512 wide, lossless: red tells half of x, green tells y."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(512) // 2, np.arange(256)[:, None]
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "grid" / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "grid" / split / name / "0.png")
    return tmp_path / "grid"


def raw(data, images: torch.Tensor) -> torch.Tensor:
    """Back to 0..255."""
    return images * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)


def test_evaluation_is_a_single_centre_crop_of_224_out_of_256(grid):
    data = imagenet(root=str(grid), workers=0)
    images, _ = next(data.eval_batches(data.test))
    assert images.shape == (2, 3, 224, 224)
    red, green, _ = raw(data, images)[0].round()
    assert red[0].tolist() == [x // 2 for x in range(144, 368)]
    assert green[:, 0].tolist() == list(range(16, 240))
    # The constants of fb.resnet.torch: a black pixel of the red channel is -mean / std.
    assert (images[:, 2] + 0.406 / 0.225).abs().max() < 1e-5


def test_resize_says_how_much_is_cut_off(grid):
    data = small(grid, size=128, resize=256)
    green = raw(data, next(data.eval_batches(data.test))[0])[0, 1].round()
    assert green[:, 0].tolist() == list(range(64, 192))


def test_windows_have_8_to_100_percent_of_the_area_and_sides_of_3_to_4(photos):
    place = torch.arange(256, dtype=torch.uint8)
    square = torch.stack([place.expand(256, 256), place.view(-1, 1).expand(256, 256)])
    square = torch.cat([square, square[:1]])
    data = small(photos, size=32, color=False)
    shares, ratios, mirrored = [], [], 0
    for _ in range(500):
        image = data.augment(square).float()
        # Between the centres of the outermost of 32 pixels lie 31/32 of the window.
        across = (image[0, :, -1] - image[0, :, 0]).mean().item() * 32 / 31
        down = (image[1, -1] - image[1, 0]).mean().item() * 32 / 31
        mirrored += across < 0
        shares.append(abs(across) * down / 256**2)
        ratios.append(abs(across) / down)
    assert 0.07 < min(shares) < 0.12 and 0.95 < max(shares) < 1.02
    assert 0.72 < min(ratios) < 0.79 and 1.27 < max(ratios) < 1.38
    assert 200 < mirrored < 300


def test_color_changes_brightness_and_tint_and_can_be_left_out(photos):
    grey = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    for color in (True, False):
        data = small(photos, color=color)
        views = torch.stack([data.augment(grey).float().mean((1, 2)) for _ in range(300)])
        if not color:
            assert (views == 100).all()
            continue
        assert 45 < views.mean(1).min() < 75 and 125 < views.mean(1).max() < 155
        assert (views[:, 0] - views[:, 2]).abs().max() > 1, "lighting has a colour"


def test_lighting_varies_as_the_principal_colours_do():
    torch.manual_seed(0)
    grey = torch.full((3, 1, 1), 128, dtype=torch.uint8)
    draws = torch.stack([lighting(grey).flatten().double() for _ in range(4000)])
    vectors = torch.tensor(streaming.EIGENVECTORS).double()
    values = (25.5 * torch.tensor(streaming.EIGENVALUES).double()) ** 2
    expected = vectors @ torch.diag(values) @ vectors.T + torch.eye(3) / 12  # of the rounding
    assert torch.allclose(draws.mean(0), torch.full((3,), 128.0).double(), atol=0.3)
    assert torch.allclose(draws.T.cov(), expected, atol=1.0)
    assert lighting(torch.full((3, 1, 1), 255, dtype=torch.uint8)).dtype == torch.uint8


# The splits and the fingerprint


def test_val_is_the_test_split_and_validation_images_come_out_of_train(photos, decoded):
    data = small(photos, val_size=6)
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 12)
    assert data.val.labels.bincount().tolist() == [2, 2, 2]
    assert len(set(data.train.names) | set(data.val.names)) == 30
    list(data.eval_batches(data.test))
    assert all(name.startswith("val/") for name in decoded) and len(decoded) == 12
    again, other = small(photos, val_size=6, size=8), small(photos, val_size=6, split_seed=1)
    assert list(data.val.names) == list(again.val.names) != list(other.val.names)
    with pytest.raises(ValueError, match="the 30 training images .* to 29; got 30"):
        small(photos, val_size=30)


def test_the_fingerprint_covers_whatever_can_change_a_result(photos):
    options = [{}, {"size": 8}, {"resize": 20}, {"color": False}, {"val_size": 3}]
    options += [{"val_size": 3, "split_seed": 1}]
    assert len({small(photos, **each).fingerprint for each in options}) == len(options)


def test_the_fingerprint_leaves_out_what_cannot(photos, copy):
    before = small(photos).fingerprint
    alike = [{"workers": 2}, {"workers": None}, {"name": "mine"}, {"split_seed": 1}, {"resize": 18}]
    for options in alike:
        assert small(photos, **options).fingerprint == before
    os.utime(copy / "val" / "ant" / "00.JPEG", ns=(0, 0))
    assert small(copy).fingerprint == before, "neither paths nor times"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write_photos(root / "train" / "ant", 12, seed=0),
        lambda root: (root / "train" / "ant" / "03.JPEG").unlink(),
        lambda root: (root / "train" / "ant" / "03.JPEG").rename(root / "train" / "ant" / "x.jpg"),
        lambda root: (root / "train" / "bee" / "03.JPEG").rename(root / "train" / "cow" / "zz.jpg"),
        lambda root: write_photos(root / "val" / "cow", 1, seed=99),
        lambda root: [(root / split / "cow").rename(root / split / "elk") for split in SPLITS],
    ],
)
def test_another_image_name_or_class_is_another_fingerprint(photos, copy, change):
    change(copy)
    assert small(copy).fingerprint != small(photos).fingerprint


SPLITS = ("train", "val")

# Wrong input


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_in_one_sentence(copy, workers):
    path = copy / "train" / "bee" / "04.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"bee/04.JPEG can't be used as an image") as error:
        list(small(copy, workers=workers).train_batches(8, seed=0, epoch=0))
    assert len(str(error.value).splitlines()) == 1 and "delete it" in str(error.value)


def test_at_the_terminal_too(copy, tmp_path):
    (copy / "val" / "bee" / "01.JPEG").write_text("no image")
    options = [*at(copy), "epochs=1", f"runs_dir={tmp_path}"]
    assert "val/bee/01.JPEG can't be used as an image" in refusal("train", *options)


def test_folders_that_are_no_data_set_are_explained(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} needs train/.*val/.*data.root="):
        imagenet(root=str(tmp_path))
    (copy / "val" / "bee").rename(copy / "val" / "wasp")
    with pytest.raises(ValueError, match="val and .*train must hold the same .*: bee, wasp$"):
        small(copy)
    shutil.rmtree(copy / "val")
    (copy / "val").mkdir()
    (copy / "val" / "ILSVRC2012_val_00000001.JPEG").write_text("as ImageNet is unpacked")
    with pytest.raises(ValueError, match="val holds no class folders; it needs one folder"):
        small(copy)


def test_a_long_listing_is_announced_once(photos, monkeypatch, capsys):
    monkeypatch.setattr(folders, "MANY_FILES", 15)  # train has 30, val 12
    small(photos)
    assert capsys.readouterr().err == f"Listing the many images of {photos / 'train'} ...\n"


def test_impossible_options_are_refused(photos):
    for options in ({"size": 0}, {"size": 32, "resize": 31}):
        with pytest.raises(ValueError, match="data.size .*data.resize"):
            small(photos, **options)
    with pytest.raises(ValueError, match="data.workers .*0 or more; got -1"):
        small(photos, workers=-1)
    with pytest.raises(ValueError, match="data=imagenet: .*colour"):
        description = {"_target_": "utils.data.imagenet", "colour": True}
        load_data(description, choose(device="cpu").device)


def test_a_folder_that_does_not_fit_into_memory_says_what_does(photos, monkeypatch):
    monkeypatch.setattr(folders.os, "sysconf", lambda _: 100)
    with pytest.raises(ValueError, match=r"30 images of .*need 0.0 GB .*data=imagenet data.root="):
        imagefolder(root=str(photos), size=64)
    monkeypatch.delattr(folders.os, "sysconf")  # as on Windows
    assert len(imagefolder(root=str(photos), size=64).train) == 30


# The stages


def at(root: Path, workers: int = 0) -> list[str]:
    """A run of a second on these photos, at the command line."""
    words = ["data=imagenet", f"data.root={root}", "data.size=16", f"data.workers={workers}"]
    words += ["model=vgg11", "model.width=0.0625", "logger=none", "hardware.precision=fp32"]
    return [*words, "recipe=paper_imagenet", "recipe.batch_size=8", "recipe.strength=0.01"]


def bits(folder: Path) -> tuple:
    weights = {name: tensor.numpy().tobytes() for name, tensor in read(folder).weights.items()}
    return weights, (folder / "metrics.jsonl").read_bytes()


def test_interrupted_in_every_step_it_ends_with_the_same_bits(photos, tmp_path, monkeypatch):
    """A training of 2 epochs of 3 steps; what goes on may have another number of workers."""

    def cfg(runs_dir: Path, workers: int):
        words = [*at(photos, workers), "recipe.batch_size=12", "epochs=2"]
        return config("train", *words, f"runs_dir={runs_dir}")

    expected = bits(train(cfg(tmp_path / "whole", 0)))
    real = engine._step

    def step_and_signal(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(engine, "_step", step_and_signal)
    stops = 0
    while True:
        try:
            folder = train(cfg(tmp_path / "killed", 2 * (stops % 3 == 0)))
            break
        except Interrupted:
            stops += 1
    assert stops == 6
    assert bits(folder) == expected


def test_all_stages_run_on_streamed_images(photos, tmp_path):
    runs = tmp_path / "runs"
    tuning = ("recipe@finetune.recipe=paper_imagenet_finetune", "finetune.recipe.batch_size=8")
    words = [*at(photos), *tuning, "data.val_size=6", "epochs=2", "finetune.epochs=1"]
    words += ["ratio=0.5", "compensate=refit", f"runs_dir={runs}"]
    code, said, error = terminal("pipeline", *words)
    assert code == 0, error
    assert "-refit-rc24" in said, "there are no more images to recalibrate on"
    results = [json.loads(path.read_text()) for path in runs.glob("*/result.json")]
    assert sorted(result["stage"] for result in results) == ["finetune", "prune", "train"]
    assert all(result["dataset"] == "imagenet" for result in results)
    (tuned,) = (result for result in results if result["stage"] == "finetune")
    assert read(runs / tuned["name"]).history[0]["data"]["_target_"] == "utils.data.imagenet"

    code, said, error = terminal("evaluate", str(runs / tuned["name"]), "hardware.precision=fp32")
    assert code == 0, error
    assert f"{100 * tuned['accuracy']['test']:.2f} % of 12 images" in said
    code, said, error = terminal("report", str(runs))
    assert code == 0, error
    assert "imagenet" in said
    again = terminal("pipeline", *words, "data.workers=2")[1]
    assert again.count("is finished") == 3
    other = [{**each, "seed": 1} for each in results]
    for each in other:
        each["config"] = {**each["config"], "data": {**each["config"]["data"], "workers": 2}}
    assert not differences([results, other]), "who reads the images is no setting of a group"


def test_the_papers_recipes_for_imagenet():
    cfg = config(
        "pipeline", "recipe=paper_imagenet", "recipe@finetune.recipe=paper_imagenet_finetune"
    )
    own = OmegaConf.create(configured.tuning(configured.plain(cfg)))
    trained, tuned = (configured.recipe_of(part) for part in (cfg, own))
    assert (trained.epochs, trained.batch_size, cfg.method.strength) == (60, 256, 1e-5)
    factors = [trained.schedule(step / 600) for step in range(600)]
    assert [factors.index(pytest.approx(value)) for value in (1, 0.1, 0.01)] == [0, 200, 400]
    assert (tuned.epochs, tuned.batch_size) == (5, 256)
    assert {tuned.schedule(step / 50) for step in range(50)} == {1.0}
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    for recipe, lr in ((trained, 0.1), (tuned, 1e-3)):
        (group,) = recipe.optimizer(parameter).param_groups
        chosen = {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
        assert chosen == {"lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}


def test_the_config_names_every_option_and_its_default(photos):
    said = yaml.safe_load((ROOT / "conf" / "data" / "imagenet.yaml").read_text())
    assert said.pop("_target_") == "utils.data.imagenet"
    assert said == {key: p.default for key, p in inspect.signature(imagenet).parameters.items()}
    made = instantiate(config("train", "data=imagenet", f"data.root={photos}").data)
    assert made.fingerprint == imagenet(root=str(photos)).fingerprint
    assert made.input_shape == (3, 224, 224) and made.workers >= 0
