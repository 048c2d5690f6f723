"""Any network from the command line: torchvision's, a user's own file, weights of a local file."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from door import TINY
from slimming import load
from slimming.checkpoint import read
from terminal import refusal, terminal
from utils.networks.initial import Initial
from utils.networks.own_code import source_hash

DATA = [word for word in TINY if not word.startswith(("model", "epochs"))] + ["epochs=1"]
BLOCKS = """
from torch import nn
def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
"""
NET = """
import torch
from torch import nn
from .blocks import block

class Net(nn.Module):
    def __init__(self, depth=2, num_classes=10, in_channels=3):
        super().__init__()
        self.body = nn.Sequential(block(in_channels, 8), *[block(8, 8) for _ in range(depth)])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    def forward(self, x):
        return self.head(self.body(x))

class PassesOn(Net):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

class Width(Net):
    def __init__(self, width=(8, 8)):
        super().__init__(num_classes=4)

class LooksAtValues(Net):
    def __init__(self, num_classes):
        super().__init__(depth=int(torch.ones(2).sum().item()), num_classes=num_classes)

class Fails(Net):
    def __init__(self):
        raise RuntimeError("no luck today")

class NoForward(nn.Module):
    pass

class Seven(Net):
    def __init__(self):
        super().__init__(num_classes=7)

class Map(Net):
    def forward(self, x):
        return self.body(x)

class Pair(Net):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Large(Net):
    def forward(self, x):
        return super().forward(nn.functional.max_pool2d(x, 32))

class NoNorm(nn.Sequential):
    def __init__(self, num_classes):
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers, nn.Linear(8, num_classes))

class Branching(Net):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)

class Lazy(Net):
    def __init__(self):
        super().__init__(num_classes=4)
        self.head[-1] = nn.LazyLinear(4)

class Bag:
    pass

def make_net():
    return Net()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that holds their_pkg/net.py."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "their_pkg").mkdir()
    (folder / "their_pkg" / "blocks.py").write_text(BLOCKS)
    (folder / "their_pkg" / "net.py").write_text(NET)
    (folder / "their_pkg" / "clash.py").write_text("from utils.theirs import x")
    (folder / "train.py").write_text("raise RuntimeError('the wrong train.py')")
    return folder


@pytest.fixture(scope="module")
def words(place, tmp_path_factory) -> list[str]:
    return [*DATA, f"runs_dir={tmp_path_factory.mktemp('runs')}", f"+model_path={place}"]


def run(*arguments: str) -> list[Path]:
    """Folders of the finished stages, in the order they came."""
    code, out, err = terminal(*arguments)
    assert code == 0, err
    runs = next(word.partition("=")[2] for word in arguments if word.startswith("runs_dir="))
    ends = re.finditer(rf"^({re.escape(runs)}\S+)(?:: test| is finished)", out, re.M)
    return [Path(end.group(1)) for end in ends]


def test_a_users_own_class_goes_through_all_stages_and_stands_alone(words):
    """The helper file it imports and a train.py of theirs beside it don't get in the way."""
    own = "model._target_=their_pkg.net.Net"
    trained, cut, tuned = run("pipeline", *words, own, "ratio=0.5", "finetune.epochs=1")
    checkpoint = read(tuned)
    assert checkpoint.arguments == {"num_classes": 4, "in_channels": 3}
    assert json.loads((tuned / "result.json").read_text())["channels"] == {"kept": 12, "total": 24}
    place, rest = words[-1], [word for word in words if word.startswith(("runs_dir", "logger"))]
    assert "allow=[their_pkg.net]" in refusal("prune", *rest, f"ckpt={trained}", "ratio=0.25")
    trust = [place.removeprefix("+"), "allow=[their_pkg.net]"]
    assert run("prune", *rest, *trust, f"ckpt={trained}", "ratio=0.25")
    assert terminal("evaluate", f"ckpt={cut}", *trust)[0] == 0
    assert load(tuned, allow=["their_pkg.net"])(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("class_name", "options", "arguments"),
    [
        ("Net", ["model.depth=1"], {"depth": 1, "num_classes": 4, "in_channels": 3}),
        ("Net", ["+model.depth=1"], {"depth": 1, "num_classes": 4, "in_channels": 3}),
        ("PassesOn", [], {"num_classes": 4, "in_channels": 3}),
        ("Width", ["model.width=[1,2]"], {"width": [1, 2]}),
        ("LooksAtValues", [], {"num_classes": 4}),
    ],
)
def test_arguments_are_the_users_and_else_from_the_data(words, class_name, options, arguments):
    (folder,) = run("train", *words, f"model._target_=their_pkg.net.{class_name}", *options)
    assert read(folder).arguments == arguments


def test_torchvisions_builders_take_the_number_of_classes_from_the_data(words):
    resnet = "model._target_=torchvision.models.resnet18"
    for said in ([], ["model.num_classes=4"]):
        code, out, err = terminal("train", *words, resnet, *said, "dry_run=true")
        assert code == 0 and "resnet18-fake-" in out, err
    assert "model.num_classes=10, but fake has 4" in refusal(
        "train", *words, resnet, "model.num_classes=10"
    )
    assert "unexpected keyword argument 'depth'" in refusal(
        "train", *words, resnet, "model.depth=1"
    )
    assert "init=FILE" in refusal("train", *words, resnet, "model.weights=DEFAULT")


def test_a_network_of_timm_goes_all_the_way(words, tmp_path):
    """Grey images, 4 classes: both are taken from the data; the thin file needs no `allow`."""
    timm = ["model._target_=timm.models.test_resnet", "data.channels=1", "data.size=32"]
    folders = run("pipeline", *words, *timm, "method.strength=0", "ratio=0.5", "epochs=1")
    assert read(folders[-1]).arguments == {"num_classes": 4, "in_chans": 1}
    assert json.loads((folders[-1] / "result.json").read_text())["channels"]["kept"] > 0
    thin = load(folders[-1])
    assert thin(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    code, out, err = terminal("export", f"ckpt={folders[-1]}", f"to={tmp_path / 'thin.onnx'}")
    assert code == 0, err


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("model._target_=timm.models.test_resnet model.pretrained=true", "would be downloaded"),
        ("model._target_=timm.models.no_such_net", "there is no network 'timm.models.no_such_net'"),
        ("model._target_=timm.models.create_model", "is a function"),
        ("model._target_=timm.models.load_checkpoint", "is a function"),
    ],
)
def test_of_timm_only_builders_of_networks_without_downloads(words, said, sentence):
    assert sentence in refusal("train", *words, *said.split())


def test_a_sweep_and_an_experiment_name_classes_too(words, tmp_path):
    """What an experiment says counts, what came with the default network doesn't."""
    (tmp_path / "experiment").mkdir()
    for name, model in (("one", "their_pkg.net.Net, depth: 1"), ("two", "their_pkg.net.PassesOn")):
        text = f"# @package _global_\nmodel: {{_target_: {model}}}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    more = ["--config-dir", str(tmp_path), "-m", *words, "dry_run=true"]
    assert "'dephth'" in refusal("train", *more[:2], *words, "experiment=one", "model.dephth=1")
    code, out, err = terminal("train", *more, "experiment=one,two")
    assert code == 0 and "net1-fake" in out and "passeson-fake" in out, err
    both = "model._target_=their_pkg.net.Net,their_pkg.net.PassesOn"
    code, again, err = terminal("pipeline", *more[2:], both, "model.depth=1")
    assert code == 0 and "passeson1-fake" in again, err
    first = [re.search(r"/net1-fake-\S+", text).group() for text in (out, again)]
    assert first[0] == first[1], "the same network, however it was said"


@pytest.mark.parametrize(
    ("class_name", "sentence"),
    [
        ("Fails", r"can't be built with \{\}: no luck today"),
        ("NoForward", 'missing the required "forward" function'),
        ("Seven", "tells 7 classes apart, but fake has 4"),
        ("Map", r"gives \(2, 8, 8, 8\) for 2 images; one row of 4 logits"),
        ("Pair", "gives 2 outputs in training mode; .*aux_logits=false"),
        ("Large", "can't read fake's images of 3x8x8: .*too small"),
        ("NoNorm", "no BatchNorm with a gamma"),
        ("Lazy", "has Lazy layers"),
        ("Bag", "is no network; a class derived from torch.nn.Module"),
        ("make_net", "is a function; a class derived from torch.nn.Module is needed"),
        ("Nothing", "there is no network 'their_pkg.net.Nothing'"),
        ("Net model.dephth=1", "'dephth' .its arguments: depth, num_classes, in_channels"),
    ],
)
def test_a_class_that_will_not_do_is_refused_before_training(words, class_name, sentence):
    said = refusal("train", *words, *f"model._target_=their_pkg.net.{class_name}".split())
    assert re.search(sentence, said), said
    assert "not foreseen" not in said


def test_what_cannot_be_cut_is_said_when_it_is_to_be_cut(words):
    own = "model._target_=their_pkg.net.NoNorm"
    (folder,) = run("train", *words, own, "method.strength=0")
    trust = [*words[-2:], "allow=[their_pkg.net]", "logger=none"]
    said = refusal("prune", *trust, f"ckpt={folder}", "ratio=0.5")
    assert "this network has no BatchNorm" in said


def test_a_network_that_looks_at_values_is_cut(words):
    own = "model._target_=their_pkg.net.Branching"
    (folder,) = run("train", *words, own, "method.strength=0")
    trust = [*words[-2:], "allow=[their_pkg.net]", "logger=none"]
    assert run("prune", *trust, f"ckpt={folder}", "ratio=0.5")


def test_a_module_that_is_not_found_leads_to_model_path(words, tmp_path):
    away = ["model._target_=absent_pkg.net.Net"]
    assert "model_path=FOLDER" in refusal("train", *words[:-1], *away)
    ours = refusal("train", *words, "model._target_=models.theirs.Net")
    assert "this project's own 'models' is found before" in ours
    clash = refusal("train", *words, "model._target_=their_pkg.clash.Net")
    assert "this project's own 'utils' is found before" in clash
    assert "is no folder" in refusal("train", *words[:-1], f"model_path={tmp_path / 'no'}", *away)
    assert "my_pkg.net.Net" in refusal("train", *words, "model=own")
    two = ["-m", *words[:-1], f"model_path={tmp_path},{tmp_path.parent}", "dry_run=true"]
    _, _, err = terminal("train", *two)
    assert "a sweep can have one model_path only" in err


def test_the_hash_sees_the_users_own_helper_files(place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for i, change in enumerate(["", "# a comment\n", "X = 1\n"]):
        package = tmp_path / f"own_pkg{i}"
        package.mkdir()
        (package / "blocks.py").write_text(BLOCKS + change)
        (package / "net.py").write_text(NET)
        module = __import__(f"own_pkg{i}.net", fromlist=["Net"])
        hashes.append(source_hash(module.Net))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict[str, torch.Tensor]:
    """As torchvision's own files are: 1000 classes."""
    torch.manual_seed(3)
    return squeezenet1_1().state_dict()


SQUEEZE = ["model._target_=torchvision.models.squeezenet1_1", "method.strength=0", "data.size=32"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_training_starts_from_a_file_of_weights(words, pretrained, tmp_path, suffix):
    """With a learning rate of nothing, what was put in comes out."""
    file = tmp_path / f"theirs{suffix}"
    torch.save(pretrained, file) if suffix == ".pth" else save_file(pretrained, file)
    still = [*words, *SQUEEZE, "recipe.optimizer.lr=0", f"init={file}"]
    assert "init_skip=[classifier.1] lets these start fresh" in refusal("train", *still)
    (folder,) = run("train", *still, "init_skip=[classifier.1]")
    got = read(folder)
    for name, tensor in got.weights.items():
        assert torch.equal(tensor, pretrained[name]) != name.startswith("classifier.1"), name
    entry = got.history[0]["init"]
    assert entry["skip"] == ["classifier.1"] and "squeezenet1_1-init-fake" in folder.name
    copy = file.rename(tmp_path / f"elsewhere{suffix}")
    again = [*still[:-1], f"init={copy}", "init_skip=classifier.1", "dry_run=true"]
    assert f"{folder} is finished" in terminal("train", *again)[1], "the contents count"
    changed = {**pretrained, "features.0.bias": pretrained["features.0.bias"] + 1}
    torch.save(changed, copy) if suffix == ".pth" else save_file(changed, copy)
    assert "would be computed" in terminal("train", *again)[1]


def test_weights_that_do_not_fit_are_named(words, pretrained, tmp_path):
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": pretrained}, file)
    net = [*words, "model._target_=their_pkg.net.Net"]
    assert "it seems to be another network's" in refusal("train", *net, f"init={file}")
    assert "'cf', which" in refusal("train", *words, *SQUEEZE, f"init={file}", "init_skip=[cf]")
    assert "no file of weights at init=nowhere" in refusal("train", *net, "init=nowhere")
    assert "say which, init=FILE" in refusal("train", *net, "init_skip=[fc]")
    torch.save(torch.nn.Linear(2, 2), file)
    assert "could run code" in refusal("train", *net, f"init={file}")
    torch.save([1, 2], file)
    assert "holds no weights" in refusal("train", *net, f"init={file}")


SMALL = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
WEIGHTS = SMALL.state_dict()


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


FILES = {
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "both": under("_orig_mod.module."),
    "Lightning": {"state_dict": {**under("model.")}, "epoch": 3, "callbacks": {}},
    "AveragedModel": {"n_averaged": torch.tensor(5), **under("module.")},
    "pytorch-cifar": {"net": WEIGHTS, "acc": 92.1, "epoch": 100},
    "torch's tutorial": {"model_state_dict": WEIGHTS, "optimizer_state_dict": {"state": {}}},
    "BasicSR": {"params_ema": WEIGHTS},
    "BasicSR with both": {"params": WEIGHTS, "params_ema": {k: v + 1 for k, v in WEIGHTS.items()}},
    "a key of their own": {"generator": under("module."), "step": 3},
}


@pytest.mark.parametrize("saved", FILES.values(), ids=FILES)
def test_weights_are_found_under_what_other_tools_wrap_them_in(saved, tmp_path):
    torch.save(saved, tmp_path / "w.pth")
    fresh = copy.deepcopy(SMALL)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    Initial.read(tmp_path / "w.pth").put_into(fresh, "Net")
    assert all(torch.equal(a, WEIGHTS[name]) for name, a in fresh.state_dict().items())


def test_a_layer_starts_fresh_under_its_own_name(tmp_path):
    torch.save(under("module."), tmp_path / "w.pth")
    fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    before = copy.deepcopy(fresh.state_dict())
    Initial.read(tmp_path / "w.pth", skip="0").put_into(fresh, "Net")
    assert torch.equal(fresh[0].weight, before["0.weight"])
    assert not torch.equal(fresh[0].weight, WEIGHTS["0.weight"])


def test_what_lies_beside_the_weights_is_named(tmp_path):
    torch.save({**under("module."), "head.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="'head.weight' isn't in the network"):
        Initial.read(tmp_path / "w.pth").put_into(copy.deepcopy(SMALL), "Net")
    torch.save({"student": WEIGHTS, "teacher": WEIGHTS}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights under 'student', 'teacher': save the one"):
        Initial.read(tmp_path / "w.pth")
