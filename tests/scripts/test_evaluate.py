"""Checkpoints of the official PyTorch port: the same network, from its file to our tools.

There is no such file here, so the tests write one: `PortVGG` has the port's layers and names.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from door import config, shell, tiny
from evaluate import evaluate_checkpoint
from export import export
from helpers import randomise, relative_gap
from models.vgg import LAYERS
from pictures import write_images
from slimming import checkpoint as artifact
from slimming import load, recalibrate, slim, trace
from slimming.checkpoint import Checkpoint, build
from slimming.planning.planner import plan
from terminal import terminal
from utils.data import sets as data
from utils.networks import port

CUT = [7, 13, "M", 20, 9, "M", 31, 19, 30, 15, "M", 32, 28, 40, 22, "M", 26, 31, 24, 30]


class PortVGG(nn.Module):
    """The layers of the port: torch's own BatchNorm eps, pooling rounded down, 2x2 mean."""

    def __init__(self, cfg, num_classes=10):
        super().__init__()
        layers, channels = [], 3
        for entry in cfg:
            if entry == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                conv = nn.Conv2d(channels, entry, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(entry), nn.ReLU()]
                channels = entry
        self.feature = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.classifier(F.avg_pool2d(self.feature(x), 2).flatten(1))


def port_file(path, layers=CUT, num_classes=10, parallel=False, old=False, **more):
    """(the port's network, its file)"""
    torch.manual_seed(0)
    network = randomise(PortVGG(layers, num_classes)).eval()
    with torch.no_grad():  # what lambda pushed to nothing has next to no variance
        network.feature[0].weight[0] = 1e-6
    recalibrate(network, [torch.randn(64, 3, 32, 32)])  # else nothing of the images gets through
    weights = {f"module.{k}" if parallel else k: v for k, v in network.state_dict().items()}
    if old:
        weights = {k: v for k, v in weights.items() if "num_batches" not in k}
    torch.save({"state_dict": weights, **more}, path)
    return network, path


def same(network, checkpoint) -> bool:
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        assert relative_gap(expected[:1], expected[1:2]) > 1e-2, "it looks at the images"
        return relative_gap(artifact.restore(checkpoint)(x), expected) < 1e-5


def test_a_pruned_network_of_the_port_is_ours(tmp_path):
    network, path = port_file(tmp_path / "pruned.pth.tar", cfg=CUT)
    checkpoint = port.read(path)
    assert checkpoint.target == "models.vgg.VGG" and checkpoint.arguments["depth"] == 19
    assert same(network, checkpoint)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_its_dense_networks_are_known_by_their_layers(tmp_path, depth):
    """As main.py writes them: optimizer state and all, DataParallel's names, torch 0.3's keys."""
    thin = [entry if entry == "M" else entry // 8 for entry in LAYERS[depth]]
    more = {"epoch": 160, "best_prec1": torch.tensor(0.937), "optimizer": {"state": {}}}
    network, path = port_file(tmp_path / "m.pth.tar", thin, 100, depth > 13, depth < 19, **more)
    checkpoint = port.read(path)
    assert checkpoint.arguments == {"depth": depth, "num_classes": 100, "in_channels": 3}
    assert same(network, checkpoint)
    (past,) = checkpoint.history
    assert past["epoch"] == 160 and past["best_prec1"] == pytest.approx(0.937)
    assert past["data"] == {"_target_": "utils.data.cifar100"}


def test_images_are_normalised_as_the_port_does(tmp_path):
    """Also after the network was written as a file of ours."""
    network, path = port_file(tmp_path / "pruned.pth.tar", cfg=CUT)
    fake = data.fake(size=32, num_classes=10, num_train=40, num_test=20)
    pixels = fake.test.images.float() / 255
    mean, std = (torch.tensor(port.NORMALISE[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = network((pixels - mean) / std)
    done = export(config("export", f"ckpt={path}", f"to={tmp_path / 'ours.pt'}", "latency=false"))
    checkpoint = artifact.read(done["path"])
    assert artifact.deployment(checkpoint) == port.NORMALISE
    seen = port.normalised(fake, checkpoint)
    images = torch.cat([images for images, _ in seen.eval_batches(seen.test, 8)])
    assert relative_gap(load(done["path"])(images), expected) < 1e-4
    ours = torch.cat([images for images, _ in fake.eval_batches(fake.test, 8)])
    assert relative_gap(load(done["path"])(ours), expected) > 1e-2


def test_evaluate_opens_it(tmp_path, capsys):
    network, path = port_file(tmp_path / "pruned.pth.tar", cfg=CUT)
    options = ["data=fake", "data.size=32", "data.num_classes=10", "data.num_test=40"]
    said = evaluate_checkpoint(tiny("evaluate", tmp_path, f"ckpt={path}", *options))
    assert said["params"] == sum(p.numel() for p in network.parameters())
    assert 0 <= said["accuracy"]["test"] <= 1
    done = shell(
        "evaluate", str(path), f"data.root={tmp_path}", "+data._target_=utils.data.cifar10"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_the_root_alone_says_where_the_data_are(tmp_path):
    """As --help says: data=... isn't needed beside it."""
    for part in ("train", "test"):
        for name, seed in (("a", 0), ("b", 1)):
            write_images(tmp_path / "there" / part / name, 4, size=(8, 8), seed=seed)
    network = randomise(build("models.vgg.VGG", {"depth": 11, "width": 0.0625, "num_classes": 2}))
    past = [{"stage": "train", "data": {"_target_": "utils.data.imagefolder", "root": "gone"}}]
    arguments = {"depth": 11, "width": 0.0625, "num_classes": 2}
    saved = Checkpoint("models.vgg.VGG", arguments, network.state_dict(), (3, 8, 8), history=past)
    artifact.save(tmp_path / "m.pt", saved)
    code, out, err = terminal("evaluate", str(tmp_path / "m.pt"), f"data.root={tmp_path / 'there'}")
    assert code == 0 and "% of 8 images" in out, err


def test_it_is_cut_further(tmp_path):
    _, path = port_file(tmp_path / "pruned.pth.tar", cfg=CUT)
    network = artifact.restore(port.read(path))
    graph = trace(network, torch.zeros(2, 3, 32, 32))
    scores = {gate: network.get_submodule(gate).weight.detach().abs() for gate in graph.gates}
    thin = slim(network, graph, plan(graph, scores, 0.5))
    assert thin(torch.zeros(1, 3, 32, 32)).isfinite().all()


class PortResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.layer1 = nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 10)


def wrong_files(tmp_path):
    """{what is wrong: (what the file holds, what is said)}"""
    weights = PortVGG(CUT).state_dict()
    empty = PortVGG([0 if entry == 7 else entry for entry in CUT]).state_dict()
    wide = PortVGG([200 if entry == 7 else entry for entry in CUT]).state_dict()
    deep = PortVGG([*CUT, 5]).state_dict()
    headless = {k: v for k, v in weights.items() if not k.startswith("classifier")}
    half = {k: v for k, v in weights.items() if not k.startswith("feature.1.")}
    other = [*CUT[:-1], 11]
    return {
        "resnet": ({"state_dict": PortResNet().state_dict()}, "not its ResNet or DenseNet"),
        "cfg": ({"state_dict": weights, "cfg": other}, "isn't that of its weights"),
        "empty": ({"state_dict": empty}, "no channels left"),
        "wide": ({"state_dict": wide}, "another network's: 'features.0.weight'"),
        "deep": ({"state_dict": deep}, "none of VGG-11, VGG-13, VGG-16, VGG-19"),
        "headless": ({"state_dict": headless}, "lacks the VGG's last layer"),
        "half": ({"state_dict": half}, "don't fit models.vgg.VGG"),
        "texts": ({"state_dict": {"feature.0.weight": "a"}}, "only VGG checkpoints can be read"),
        "none": ({"weights": weights}, "not a checkpoint of this project"),
    }


@pytest.mark.parametrize("wrong", wrong_files(None))
def test_what_isnt_a_vgg_of_the_port_is_one_sentence(tmp_path, wrong):
    held, sentence = wrong_files(tmp_path)[wrong]
    torch.save(held, tmp_path / "port.pth.tar")
    with pytest.raises(ValueError, match=f"port.pth.tar.*{sentence}"):
        export(config("export", f"ckpt={tmp_path / 'port.pth.tar'}", f"to={tmp_path / 'x.pt'}"))
    assert [path.name for path in tmp_path.iterdir()] == ["port.pth.tar"]


def test_numbers_of_numpy_are_not_loaded_and_the_way_out_is_said(tmp_path):
    import numpy as np

    _, path = port_file(tmp_path / "old.pth.tar", best_prec1=np.float64(0.93))
    with pytest.raises(ValueError, match=r"numbers of numpy.*weights_only=False.*torch\.save"):
        port.read(path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        port.read(tmp_path / "nothing.pth.tar")
    (tmp_path / "broken.pth.tar").write_bytes(b"not torch")
    with pytest.raises(ValueError, match=r"broken\.pth\.tar is broken or not a checkpoint"):
        port.read(tmp_path / "broken.pth.tar")
