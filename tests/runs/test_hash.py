"""What a run's name stands for: whatever can change its result, and nothing else."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import finetune
import prune
import train
from door import ROOT, TINY, config, tiny
from slimming.checkpoint import Checkpoint, save
from slimming.methods.slimming import Slimming
from utils.cli.script import CONF
from utils.data import load
from utils.networks import own_code
from utils.runs.parent import Parent
from utils.training.method import training_identity


def name(*overrides: str, script: str = "train", parent=None, runs: str = "runs") -> str:
    stage = {"train": train, "prune": prune, "finetune": finetune}[script]
    return stage.describe(tiny(script, Path(runs), *overrides), parent).run.name


def leaves(node: dict, prefix: str = "") -> list[tuple[str, object]]:
    """("optimizer.lr", 0.1), ...: the options of a yaml."""
    found = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_") and key != "defaults":
            found.append((prefix + key, value))
    return found


def another(value: object) -> str:
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, list):
        return f"[{','.join(str(item * 0.9) for item in value)}]"
    return str(value * 2 if isinstance(value, int) and value else (value or 1e-3) * 0.5)


RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))


KINDS = ("fast",)  # the others have the same fields
OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in RECIPES if name not in KINDS]


@pytest.mark.parametrize("recipe", [*KINDS, *OTHERS])
def test_every_field_of_a_recipe_counts_but_its_name(recipe):
    told = OmegaConf.to_container(config("train", f"recipe={recipe}").recipe)
    fields = [(key, value) for key, value in leaves(told) if value is not None and key != "epochs"]
    assert {key for key, _ in fields} >= {"batch_size", "optimizer.lr", "optimizer.momentum"}
    words = (f"recipe={recipe}", "epochs=200")  # long enough for a lambda to follow from reach
    plain = name(*words)
    for key, value in fields:
        fixed = {"name": "other", "batch_size": 16}  # fewer than there are images
        other = fixed.get(key) or another(value)
        changed = name(*words, f"recipe.{key}={other}") != plain
        assert changed == (key != "name"), f"{key}={other}"


CUT = [
    *(
        "floor=2",
        "refill=false",
        "round_to=4",
        "round_to=4 rounding=up",
        "scope=layer",
        "coupled=keep",
    ),
    *("combine=sum", "dead=bypass", "unread=remove", "compensate=bias", "recalibrate=64"),
    *("ratio=0.4", "ratio=null target.macs=0.5", "method=l1_norm", "method=gamma_local"),
    "hardware.precision=bf16",
]


@pytest.fixture(scope="module")
def trained() -> Parent:
    """A training nobody has begun: enough to name what follows."""
    return train.describe(tiny("train", Path("runs"))).as_parent()


@pytest.mark.parametrize("change", CUT)
def test_every_option_of_a_cut_counts(trained, change):
    plain = name("ratio=0.5", script="prune", parent=trained)
    assert name("ratio=0.5", *change.split(), script="prune", parent=trained) != plain


def test_what_a_cut_does_not_look_at_does_not_count(trained):
    plain = name("ratio=0.5", script="prune", parent=trained)
    for same in ("images=64", "ratio=5e-1", "refill=true", "method.mode=proximal"):
        assert name("ratio=0.5", same, script="prune", parent=trained) == plain, same
    folded = name("ratio=0.5", "compensate=bias", script="prune", parent=trained)
    assert (
        name("ratio=0.5", "compensate=bias", "images=64", script="prune", parent=trained) != folded
    )


def test_the_parent_and_the_tuning_count(trained):
    cut = prune.describe(tiny("prune", Path("runs"), "ratio=0.5"), trained).as_parent()
    other = prune.describe(tiny("prune", Path("runs"), "ratio=0.25"), trained).as_parent()
    plain = name(script="finetune", parent=cut)
    assert name(script="finetune", parent=other) != plain
    for change in ("epochs=7", "scratch=E", "recipe=paper", "recipe.optimizer.lr=0.01"):
        assert name(change, script="finetune", parent=cut) != plain, change


@pytest.fixture
def photos(tmp_path) -> Path:
    """root/{train,test}/{a,b}/*.png"""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{i}.png")
    return tmp_path / "photos"


def of_photos(root: Path, *more: str) -> str:
    load._load.cache_clear()  # each is another process
    words = ("data=imagefolder", f"data.root={root}", "model=vgg11", "model.width=0.0625")
    overrides = (*words, "hardware.precision=fp32", "logger=none", *more)
    return train.describe(config("train", *overrides)).run.name


def test_another_image_counts_and_the_place_of_the_images_does_not(photos, tmp_path):
    plain = of_photos(photos)
    assert of_photos(photos) == plain, "out of the cache of decoded images"
    moved = shutil.copytree(photos, tmp_path / "elsewhere" / "pictures")
    assert of_photos(moved) == plain
    file = photos / "train" / "a" / "0.png"
    before = file.read_bytes()
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    assert of_photos(photos) != plain, "one bit of one image"
    file.write_bytes(before)
    assert of_photos(photos) == plain, "and back"
    shutil.copy(file, photos / "train" / "a" / "9.png")
    assert of_photos(photos) != plain, "one image more"
    (photos / "train" / "a" / "9.png").unlink()
    os.rename(photos / "test" / "b", photos / "test" / "tmp")
    os.rename(photos / "test" / "a", photos / "test" / "b")
    os.rename(photos / "test" / "tmp", photos / "test" / "a")
    assert of_photos(photos) != plain, "other labels"


def test_which_images_are_set_aside_counts(photos):
    assert of_photos(photos, "data.val_size=2") != of_photos(photos)
    other = of_photos(photos, "data.val_size=2", "data.split_seed=1")
    assert other != of_photos(photos, "data.val_size=2")
    assert of_photos(photos, "data.split_seed=1") == of_photos(photos), "nothing is set aside"


def test_a_users_code_counts_line_by_line_also_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    helper, net = tmp_path / "their_helper.py", tmp_path / "their_hashed_net.py"
    helper.write_text("WIDTH = 8\n")
    source = "from torch import nn\nfrom their_helper import WIDTH\n\n\nclass Net(nn.Sequential):\n"
    source += "    def __init__(self, num_classes):\n        super().__init__(\n"
    source += "            nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(),\n"
    source += "            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))\n"
    net.write_text(source)
    cfg = tiny("train", Path("runs"))
    cfg.model = {"_target_": "their_hashed_net.Net"}

    def now() -> str:
        own_code.forget()  # each is another process, which keeps what it has loaded
        return train.describe(cfg).run.name

    plain = now()
    net.write_text("# why\n" + source.replace("nn.ReLU(),", "nn.ReLU(),  # a comment\n\n"))
    assert now() == plain
    net.write_text(source.replace("nn.ReLU()", "nn.ReLU6()"))
    assert now() != plain
    net.write_text(source)
    helper.write_text("WIDTH = 8  # wide enough\n")
    assert now() == plain
    helper.write_text("WIDTH = 9\n")
    assert now() != plain


def sources(monkeypatch, changed: dict[str, str], target) -> str:
    """The hash of `target`'s source where these modules read otherwise."""
    own_code.forget()
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        return real(path) + next(
            (b"\n" + t.encode() for n, t in changed.items() if n in str(path)), b""
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        found = own_code.source_hash(target)
    own_code.forget()
    return found


def test_networks_and_methods_of_ours_count_wherever_they_are_used(tmp_path, monkeypatch):
    """No digest watches them: they are in names."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "over_ours.py").write_text(
        "from models.common import as_in_the_paper\n"
        "from slimming.methods.slimming import Slimming\n"
        "class Net: ...\nclass Mine(Slimming): ...\n"
    )
    import over_ours

    plain = sources(monkeypatch, {}, over_ours.Net)
    for file in ("models/common.py", "methods/sparsity.py", "methods/base.py", "over_ours.py"):
        assert sources(monkeypatch, {file: "A = 1"}, over_ours.Net) != plain, file
    for file in ("graph/labels.py", "models/resnet.py", "models/common.py.bak"):
        assert sources(monkeypatch, {file: "A = 1"}, over_ours.Net) == plain, file


def test_a_helper_that_is_imported_late_counts_loaded_or_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_helper.py").write_text("A = 1\n")
    (tmp_path / "late_net.py").write_text(
        "class Net:\n    def forward(self, x):\n        import late_helper\n        return x\n"
    )
    import late_net

    before = sources(monkeypatch, {}, late_net.Net)
    assert "late_helper" not in sys.modules
    assert sources(monkeypatch, {"late_helper.py": "B = 1"}, late_net.Net) != before
    importlib.import_module("late_helper")
    assert sources(monkeypatch, {}, late_net.Net) == before


@pytest.mark.parametrize(
    "source",
    [
        "A = f'{1}'  # c\n", "\fA = f'{1}'\n", "A = '\x85'; B = f'{A}'\n",
        "A = 1\r\nB = f'{A}'\r\n",
        "def f():\n    \"doc\"\n    return f\"\"\"{1}\n  # no comment\"\"\"\n",
    ],
)  # fmt: skip
def test_words_lose_no_text_and_keep_no_comment(source):
    words = list(own_code.statements(source.encode()))
    assert any(word.startswith(("f'", 'f"')) and word.endswith(("'", '"')) for word in words)
    assert not any(word.startswith("# c") or word == '"doc"' for word in words)


def test_latin_1_is_read_as_it_says():
    source = "# coding: latin-1\nA = f'é{1}'\n".encode("latin-1")
    assert "f'é{1}'" in list(own_code.statements(source))


class Quiet(Slimming):
    """Trains as slimming does, scores otherwise."""

    def scores(self, *_):
        return {}


class Loud(Slimming):
    def __init__(self, strength: float = 1e-4):
        super().__init__(strength, mode="proximal")


def test_only_a_method_that_scores_alone_shares_its_trainings():
    node = {"_target_": "slimming.methods.slimming.Slimming", "strength": 0.1}
    plain = training_identity(node, Slimming(0.1), True)
    for kind, same in ((Quiet, True), (Loud, False)):
        own = {**node, "_target_": f"test_hash.{kind.__name__}"}
        assert (training_identity(own, kind(0.1), True) == plain) == same


def test_the_weights_of_an_initial_file_count_and_its_name_does_not(tmp_path):
    from models.vgg import VGG

    model = VGG(depth=11, width=0.0625, num_classes=4)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "b.pt")
    described = Checkpoint("models.vgg.VGG", {}, model.state_dict(), (3, 8, 8))
    save(tmp_path / "c.safetensors", described)
    names = [name(f"init={tmp_path / file}") for file in ("a.pth", "b.pt", "c.safetensors")]
    assert len(set(names)) == 1 and names[0] != name()
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert name(f"init={tmp_path / 'a.pth'}") != names[0]
    assert name(f"init={tmp_path / 'b.pt'}", "init_skip=[classifier]") != names[0]


def test_how_it_is_written_and_where_it_runs_does_not_count(tmp_path):
    plain = name("recipe.optimizer.weight_decay=1e-4", "method.strength=0.01", "seed=3")
    ways = [
        ("seed=3", "method.strength=1e-2", "recipe.optimizer.weight_decay=0.0001"),
        ("method.strength=0.010", "recipe.optimizer.weight_decay=1.0e-4", "seed=3", "device=cpu"),
        *((plain_change, "hardware.threads=1") for plain_change in ("hardware.save_minutes=1",)),
        ("dry_run=true", "logger=wandb", "allow=[a,b]"),
    ]
    base = ("method.strength=0.01", "recipe.optimizer.weight_decay=1e-4", "seed=3")
    for way in ways:
        assert name(*base, *way, runs=str(tmp_path / "other")) == plain, way
    assert name(*base, "hardware.precision=bf16") != plain


def test_a_project_that_was_moved_finds_its_runs(tmp_path):
    """Another folder, another working directory, another process."""
    for part in ("conf", "models", "slimming", "utils"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "cwd").mkdir()
    done = subprocess.run(
        [sys.executable, tmp_path / "train.py", *TINY, "dry_run=true"], cwd=tmp_path / "cwd",
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == f"runs/{name()}"
