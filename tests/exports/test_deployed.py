"""A network trained on pictures, taken to an empty folder without this project, and used there."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from door import ROOT, TINY
from pictures import write_images
from slimming import checkpoint as artifact
from slimming.checkpoint import Checkpoint, build
from terminal import terminal
from utils.data import imagefolder, imagenet
from utils.data.deployment import deployment
from utils.data.load import load_data
from utils.exports import program_text, standalone

NAMES = ["nil", "one", "two"]
SUFFIXES = ["pt", "safetensors", "onnx", "py"]
# Nothing but the file, its own metadata, numpy, Pillow and onnxruntime.
WITH_ONNXRUNTIME = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession("thin.onnx")
told = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
height, width = told["input_size"]
assert all(f"`{key}`" in told["preprocess"] for key in ("input_size", "mean", "std")), "how"
photo = Image.open("photo.png").convert("RGB")
scale = max(height / photo.height, width / photo.width)
photo = photo.resize((round(scale * photo.width), round(scale * photo.height)), 2)
left, top = (photo.width - width) // 2, (photo.height - height) // 2
photo = photo.crop((left, top, left + width, top + height))
image = np.asarray(photo, np.float32).transpose(2, 0, 1) / 255
mean, std = (np.array(told[key], np.float32)[:, None, None] for key in ("mean", "std"))
(scores,) = session.run(None, {"input": ((image - mean) / std)[None]})
assert not {"torch", "slimming", "models", "utils"} & {name.split(".")[0] for name in sys.modules}
print(json.dumps([told["classes"][scores.argmax()], scores[0].tolist()]))
"""
WITH_TORCH = """
import json, sys
sys.path.insert(0, "")
import thin
from PIL import Image
scores = thin.load()(thin.preprocess(Image.open("photo.png")))[0]
assert not {"slimming", "models", "utils"} & {name.split(".")[0] for name in sys.modules}
print(json.dumps([thin.CLASSES[scores.argmax()], scores.tolist()]))
"""


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """(an empty folder with a photo and all exports, the run's model.pt, the data set)"""
    place = tmp_path_factory.mktemp("secret")
    pictures = load_digits()
    for part, some in (("train", slice(0, 120)), ("test", slice(120, 160))):
        for i, (pixels, label) in enumerate(zip(pictures.images[some], pictures.target[some])):
            if label < len(NAMES):
                folder = place / "mine" / part / NAMES[label]
                folder.mkdir(parents=True, exist_ok=True)
                photo = Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((24, 20))
                photo.save(folder / f"{i}.png")
    words = [word for word in TINY if not word.startswith("data")]
    data = ["data=imagefolder", f"data.root={place / 'mine'}", "data.size=10", "data.flip=false"]
    code, _, err = terminal("pipeline", *words, *data, f"runs_dir={place / 'runs'}", "epochs=6")
    assert code == 0, err
    (model,) = (place / "runs").glob("*-ft-*/model.pt")
    alone = place / "alone"
    alone.mkdir()
    for suffix in SUFFIXES:
        asked = [str(model.parent), f"to={alone / 'thin'}.{suffix}", "latency=false"]
        code, out, err = terminal("export", *asked)
        assert code == 0, err
        assert ("thin.py reads thin.weights.pt" in out) == (suffix == "py")
    data = imagefolder(root=str(place / "mine"), size=10)
    next(iter(sorted((place / "mine" / "test" / "one").iterdir()))).rename(alone / "photo.png")
    return alone, model, data


def python(folder, *words):
    done = subprocess.run(
        [sys.executable, "-I", *words], cwd=folder, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(model, data):
    """What this project makes of the photo: the first test image of its class."""
    (images, labels), *_ = data.eval_batches(data.test)
    with torch.no_grad():
        scores = artifact.load(model)(images)
    assert (scores[0] - scores[-1]).abs().max() > 1e-2, "it looks at the images"
    return scores[labels.tolist().index(NAMES.index("one"))]


def test_a_photo_is_classified_where_there_is_no_project(away):
    alone, model, data = away
    scores = expected(model, data)
    name = data.classes[scores.argmax()]
    for code in (WITH_ONNXRUNTIME, WITH_TORCH):
        found, got = json.loads(python(alone, "-c", code))
        assert found == name
        assert (torch.tensor(got) - scores).abs().max() < 1e-4 * scores.abs().max()
    share = scores.softmax(0).max()
    said = python(alone, "thin.py", "photo.png", "photo.png")
    assert said == 2 * f"photo.png: {name} ({share:.1%})\n"
    assert python(alone, "thin.py").strip() == "(2, 3)"


def test_every_file_says_how_a_picture_becomes_an_input(away):
    alone, model, data = away
    told = deployment(data)
    assert told["classes"] == NAMES and told["resize"] is None
    for mean, level in zip(told["mean"], data.mean.tolist(), strict=True):
        assert mean == pytest.approx(level / 255, abs=1e-6)
    for file in (model, alone / "thin.pt", alone / "thin.safetensors"):
        checkpoint = artifact.read(file)
        assert artifact.deployment(checkpoint) == {k: told[k] for k in ("mean", "std", "classes")}
        assert checkpoint.input_shape == (3, 10, 10)
    with safe_open(alone / "thin.safetensors", "pt") as file:
        described = json.loads(file.metadata()[artifact.FORMAT])
    assert described["mean"] == told["mean"] and described["classes"] == NAMES
    text = (alone / "thin.py").read_text()
    assert f"MEAN = {told['mean']}" in text and f"STD = {told['std']}" in text
    assert "SIZE = (10, 10)" in text and f"CLASSES = {NAMES}" in text
    assert "thin.weights.pt beside it" in text


def test_no_file_names_a_folder_of_the_machine(away):
    """Of the run, of its data, of Python: in any byte."""
    alone, model, _ = away
    folder = rb"(?<![\w./])/(home|root|tmp|usr|var|work|opt|mnt|Users|private)/|[A-Z]:\\\\"
    for file in (model, *(path for path in alone.glob("thin*") if path.is_file())):
        content = file.read_bytes()
        assert b"secret" not in content and b"site-packages" not in content, file.name
        assert not re.search(folder, content), file.name
    past = artifact.read(model).history
    assert [entry["data"]["root"] for entry in past] == ["mine"] * 3


def test_a_run_is_found_its_data_again_all_the_same(away):
    _, model, _ = away
    code, out, err = terminal("evaluate", str(model.parent))
    assert code == 0 and "test" in out, err
    runs = f"runs_dir={model.parents[1]}"
    code, out, err = terminal("prune", f"ckpt={model.parent}", "ratio=0.3", runs)
    assert code == 0, err
    cut = max(model.parents[1].glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    assert json.loads(cut.read_text())["config"]["data"]["root"].endswith("/mine")
    code, out, err = terminal("finetune", f"ckpt={cut.parent}", "epochs=1", "logger=none", runs)
    assert code == 0, err
    result = max(model.parents[1].glob("*-ft-s0-*/result.json"), key=lambda p: p.stat().st_mtime)
    assert json.loads(result.read_text())["images"] == {"train": 38, "val": 0, "test": 10}


def test_without_its_weights_a_program_says_what_is_missing(away, tmp_path):
    alone, *_ = away
    (tmp_path / "thin.py").write_text((alone / "thin.py").read_text())
    done = subprocess.run(
        [sys.executable, "-I", "thin.py"], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert "thin.weights.pt is missing: this program and its weights go together" in done.stderr


def program_for(told, tmp_path, shape=(3, 14, 14)):
    """The names of a program for such data."""
    arguments = {"depth": 11, "width": 0.0625, "num_classes": 3, "in_channels": shape[0]}
    network = build("models.vgg.VGG", arguments).eval()
    program = standalone.convert(network, shape)
    standalone.save(tmp_path / "thin.py", program, {}, told)
    names: dict = {"__name__": "thin", "__file__": str(tmp_path / "thin.py")}
    exec((tmp_path / "thin.py").read_text(), names)
    return names


def test_streamed_pictures_are_scaled_before_the_centre_is_cut(tmp_path):
    for part in ("train", "val"):
        for name, seed in (("a", 0), ("b", 1)):
            write_images(tmp_path / part / name, 2, size=(40, 32), seed=seed)
    data = imagenet(root=str(tmp_path), size=14, workers=0)
    told = deployment(data)
    assert told["resize"] == 16 and told["classes"] == ["a", "b"]
    saved = Checkpoint("models.vgg.VGG", {}, {}, (3, 14, 14), **told)
    artifact.save(tmp_path / "m.pt", saved)
    assert artifact.deployment(artifact.read(tmp_path / "m.pt")) == told
    names = program_for(told, tmp_path)
    (images, _), *_ = data.eval_batches(data.test)
    photo = Image.open(tmp_path / "val" / "a" / "000.png")
    # Pillow's scaling and torchvision's round differently, by a level or two.
    assert (names["preprocess"](photo)[0] - images[0]).abs().max() < 3 / 255 / min(told["std"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_become_grey_inputs(tmp_path, mode):
    for part in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / part / name, 2, size=(9, 12), seed=ord(name))
    data = imagefolder(root=str(tmp_path), size=8, channels=1)
    names = program_for(deployment(data), tmp_path, (1, 8, 8))
    photo = Image.open(tmp_path / "test" / "a" / "000.png").convert(mode)
    got = names["preprocess"](photo)
    assert got.shape == (1, 1, 8, 8) and got.dtype == torch.float32
    if mode == "RGBA":
        (images, _), *_ = data.eval_batches(data.test)
        assert (got[0] - images[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("told", "shape"), [({}, (3, 8, 8)), ({"mean": [0.5] * 4, "std": [1.0] * 4}, (4, 8, 8))]
)
def test_what_nobody_said_is_none_and_nothing_is_made_up(tmp_path, told, shape):
    names = program_for(told, tmp_path, shape)
    assert names["MEAN"] == told.get("mean") and names["CLASSES"] is None
    assert "preprocess" not in names and "classify" not in names
    assert names["load"]()(torch.zeros(1, *shape)).shape == (1, 3)


def test_classes_without_names_have_numbers(tmp_path):
    names = program_for({"mean": [0.5] * 3, "std": [1.0] * 3}, tmp_path, (3, 8, 8))
    found, share = names["classify"](names["load"](), Image.new("RGB", (8, 8)))
    assert found in range(3) and 0 < share <= 1


def test_a_thousand_classes_stay_readable(tmp_path):
    told = {"classes": [f"class {i}" for i in range(1000)]}
    names = program_for(told, tmp_path, (3, 8, 8))
    assert names["CLASSES"] == told["classes"]
    text = (tmp_path / "thin.py").read_text()
    assert max(map(len, text.splitlines())) < 130 and text.startswith(program_text.MARK)


def test_the_committed_thin_networks_say_it_too():
    digits = artifact.read(ROOT / "results" / "digits_thin.safetensors")
    told = deployment(load_data({"_target_": "utils.data.digits"}, torch.device("cpu")))
    assert artifact.deployment(digits) == {k: v for k, v in told.items() if v is not None}
    cifar10 = artifact.read(ROOT / "results" / "cifar10_thin.safetensors")
    assert cifar10.classes[:2] == ["airplane", "automobile"] and len(cifar10.classes) == 10
    assert cifar10.mean == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255], rel=1e-6)
