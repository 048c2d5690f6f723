"""Files are data: they come back bit for bit, run no code, and are never left half-written."""

import copy
import errno
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers import assert_same_state, configured, configured_networks, random_plan, randomise
from models.vgg import VGG
from slimming import checkpoint as artifact
from slimming import load, save, slim, trace
from slimming.checkpoint import Checkpoint, read, write_atomically
from slimming.surgery.builder import build

ROOT = Path(__file__).parents[2]
SUFFIXES = [".pt", ".safetensors"]


class Tied(nn.Module):
    """Two layers share one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def checkpoint(model: nn.Module, target: str, **arguments) -> Checkpoint:
    return Checkpoint(target, arguments, model.state_dict(), (3, 16, 16))


def small_vgg(**options) -> Checkpoint:
    model = randomise(VGG(11, width=0.0625, **options))
    return checkpoint(model, "models.vgg.VGG", depth=11, width=0.0625, **options)


def zoo_checkpoint(name: str, kind: str) -> tuple[nn.Module, Checkpoint]:
    """A zoo network that was cut, and its file; to be rebuilt from `zoo`."""
    from zoo import ZOO

    make, shape = ZOO[name]
    model = randomise(make())
    graph = trace(model, torch.zeros(1, *shape))
    thin = slim(model, graph, random_plan(graph, 0.5))
    return thin.eval(), Checkpoint(f"zoo.{kind}", {}, thin.state_dict(), shape)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".pt") for name in configured_networks()), ("vgg11", ".safetensors")],
)
def test_thin_and_dense_networks_come_back_bit_for_bit(tmp_path, name, suffix):
    target, arguments = configured_networks()[name]
    model, x = configured(name), torch.randn(2, 3, 16, 16)
    graph = trace(model, x)
    for ratio in (0, 0.6):
        keep = random_plan(graph, ratio)
        thin = slim(model, graph, keep).eval()
        kept = {gate: indices.tolist() for gate, indices in keep.items()}
        history = [{"stage": "prune", "ratio": ratio, "note": None, "nested": {"a": [1, 2.5]}}]
        path = tmp_path / f"model{suffix}"
        save(path, Checkpoint(target, arguments, thin.state_dict(), (3, 16, 16), kept, history))
        loaded = load(path)
        assert_same_state(loaded.state_dict(), thin.state_dict())
        assert not any(module.training for module in loaded.modules())
        assert torch.equal(loaded(x), thin(x))
        assert read(path).keep == kept and read(path).history == history
        assert read(path).input_shape == (3, 16, 16)
        again = trace(loaded, x)  # a first-class network: its modules know their sizes
        assert slim(loaded, again, random_plan(again, 0.3))(x).shape == (2, 7)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("name", "kind"),
    [("pre-activation", "PreActivation"), ("two names", "Alias"), ("dense", "Dense")],
)
def test_channel_selections_come_back(tmp_path, name, kind, suffix):
    thin, saved = zoo_checkpoint(name, kind)
    assert any(key.endswith(".index") for key in saved.weights)
    save(tmp_path / f"m{suffix}", saved)
    loaded, x = load(tmp_path / f"m{suffix}", allow=["zoo"]), torch.randn(2, 3, 8, 8)
    assert set(loaded.state_dict()) == set(thin.state_dict())
    for key, value in thin.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert torch.equal(loaded(x), thin(x))
    assert not any("index" in key for key, _ in loaded.named_parameters())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bias_that_was_created_comes_back(tmp_path, suffix):
    saved = small_vgg()
    model = artifact.restore(saved)
    model.features[0].bias = nn.Parameter(torch.randn(4))
    changed = Checkpoint(saved.target, saved.arguments, model.state_dict(), (3, 16, 16))
    save(tmp_path / f"m{suffix}", changed)
    loaded, x = load(tmp_path / f"m{suffix}"), torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.features[0].bias, model.features[0].bias)
    assert torch.equal(loaded(x), model(x))


KINDS = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_keep_their_type_unless_the_file_asks_for_another(tmp_path, suffix, kind):
    """float16 is also a way to store float32 in half the bytes: export.py half=true."""
    saved = small_vgg()
    weights = {k: v.to(kind) if v.is_floating_point() else v for k, v in saved.weights.items()}
    told = replace(saved, weights=weights)
    for dtype, expected in ((None, kind), ("float32", torch.float32)):
        save(tmp_path / f"m{suffix}", replace(told, dtype=dtype))
        loaded = load(tmp_path / f"m{suffix}")
        assert {p.dtype for p in loaded.parameters()} == {expected}
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, weights[name].to(tensor.dtype))
    save(tmp_path / f"m{suffix}", replace(told, dtype="nonsense"))
    with pytest.raises(ValueError, match="'nonsense', which is no type of torch"):
        load(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tied_and_sliced_weights_are_stored_compactly(tmp_path, suffix):
    tied = Tied()
    large = torch.randn(1000, 1000)
    weights = {**tied.state_dict(), "a.bias": large[0, :4]}  # a view of much more
    save(tmp_path / f"m{suffix}", Checkpoint("zoo.Tied", {}, weights, (4,)))
    assert (tmp_path / f"m{suffix}").stat().st_size < 10_000
    assert torch.equal(read(tmp_path / f"m{suffix}").weights["b.weight"], tied.b.weight)


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "inside"])
def test_a_file_with_code_is_refused_and_runs_nothing(tmp_path, how):
    evil, path = Exploit(tmp_path / "ran"), tmp_path / "m.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif how == "inside":
        saved = small_vgg()
        save(path, saved)
        torch.save({**torch.load(path), "arguments": {"depth": evil}}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"m\.pt is broken or not a checkpoint.*plain data"):
        load(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))  # the trap does work
    assert (tmp_path / "ran").exists()


def test_a_pickled_network_is_refused(tmp_path):
    torch.save(VGG(11, width=0.0625), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load(tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_sentence(tmp_path, suffix, share):
    path = tmp_path / f"m{suffix}"
    save(path, small_vgg())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="broken or not a checkpoint") as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_files_are_one_sentence(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_text("hello, this is no network\n" * 100)
    with pytest.raises(ValueError, match="broken or not a checkpoint"):
        load(path)


@pytest.mark.parametrize(
    "other",
    [
        {"state_dict": {}},
        [1, 2],
        torch.ones(3),
        {"format": "network-slimming"},
        {"format": "network-slimming", "schema": 99},
        {"format": "network-slimming", "schema": 1, "target": "models.vgg.VGG"},
    ],
)
def test_plain_data_of_another_kind_is_refused(tmp_path, other):
    torch.save(other, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt (is not a checkpoint|has schema|lacks a part)"):
        load(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "change",
    [
        *({"weights": value} for value in ({"a": 1}, [1], None, 3)),
        *({"arguments": value} for value in (3, "depth", None)),
        *({"input_shape": value} for value in (3, ["a"], None)),
        *({"keep": value} for value in (3, {"a": 1})),
        {"history": 7},
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(tmp_path, change):
    path = tmp_path / "m.pt"
    save(path, small_vgg())
    torch.save({**torch.load(path), **change}, path)
    with pytest.raises(ValueError, match=r"m\.pt lacks a part"):
        load(path)


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load(tmp_path / "m.safetensors")


def test_no_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pt"):
        load(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*model\.pt"):
        load(tmp_path)
    save(tmp_path / "model.pt", small_vgg())
    assert isinstance(load(tmp_path), VGG)  # a run folder will do


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "subprocess.run", "torch.nn.Linear", "torch.load", "eval"),
        *("models.vgg.math", "models.vgg.nn", "models.vgg.nn.Linear", "models.vgg.Tensor"),
        *("models.vgg.LAYERS", "models.vgg.none", "models.none.Net", "models", "modelsx.vgg.VGG"),
        *("torchvision.models.resnet.load_state_dict_from_url", "torchvision.models.get_model"),
        *("torchvision.models.resnet._resnet", "torchvision.models.resnet.partial", "", ".", "a."),
        *("torchvision.ops.misc.FrozenBatchNorm2d", "torchvision.models.resnet.nn", "zoo.Tied"),
        *("models.vgg.VGG.__init__", "torchvision.models.resnet.Conv2dNormActivation"),
    ],
)
def test_only_networks_are_built(monkeypatch, target):
    called = []
    for module, name in ((os, "system"), (subprocess, "run"), (torch, "load"), (torch.hub, "load")):
        monkeypatch.setattr(module, name, lambda *a, **k: called.append(a))
    with pytest.raises(ValueError) as caught:
        build(target, {})
    assert "\n" not in str(caught.value) and str(caught.value)
    assert not called


def test_a_users_own_module_needs_to_be_allowed(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\nfrom torch.nn import Linear\n"
        "class Net(nn.Linear):\n    pass\ndef make():\n    return Net(1, 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = {"in_features": 2, "out_features": 3}
    with pytest.raises(ValueError, match=r"allow=\[own_net\]"):
        build("own_net.Net", arguments)
    assert "own_net" not in sys.modules  # not even imported
    assert build("own_net.Net", arguments, allow=["own_net"]).out_features == 3
    for other in ("own_net.Linear", "own_net.make", "own_net.nn"):
        with pytest.raises(ValueError, match="derived from torch.nn.Module defined in"):
            build(other, arguments, allow=["own_net"])


@pytest.mark.parametrize(
    "arguments", [{"depth": 12}, {"height": 3}, {"width": "wide"}, {"num_classes": -1}]
)
def test_impossible_arguments_are_one_sentence(arguments):
    with pytest.raises(ValueError, match=r"models\.vgg\.VGG can't be built with"):
        build("models.vgg.VGG", arguments)


@pytest.mark.parametrize("value", [torch.ones(2), object(), nn.ReLU, {1: 2}, {"a": {3}}, Path("x")])
def test_arguments_and_history_are_plain(tmp_path, value):
    with pytest.raises(ValueError, match="plain values only"):
        build("models.vgg.VGG", {"depth": value})
    saved = small_vgg()
    for broken in (
        Checkpoint(saved.target, {"depth": value}, saved.weights, (3, 16, 16)),
        Checkpoint(saved.target, {}, saved.weights, (3, 16, 16), {}, [{"a": value}]),
    ):
        with pytest.raises(ValueError, match="plain values only"):
            save(tmp_path / "m.pt", broken)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.pt or \.safetensors"):
        save(tmp_path / "m.pth", small_vgg())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "other",
    [
        lambda w: VGG(13, width=0.0625).state_dict(),
        lambda w: VGG(11, width=0.125).state_dict(),
        lambda w: VGG(11, num_classes=11, width=0.0625).state_dict(),
        lambda w: {k: v for k, v in w.items() if k != "features.1.bias"},
        lambda w: {**w, "features.1.extra": torch.ones(2)},
        lambda w: {**w, "nowhere.weight": torch.ones(2)},
        lambda w: {**w, "features.0.weight": torch.ones(4)},
        lambda w: {**w, "features.0.index": torch.arange(4)},
        lambda w: {},
    ],
)
def test_weights_of_another_network_are_one_sentence(tmp_path, other, suffix):
    saved = small_vgg()
    weights = other(copy.deepcopy(saved.weights))
    save(tmp_path / f"m{suffix}", Checkpoint(saved.target, saved.arguments, weights, (3, 16, 16)))
    with pytest.raises(ValueError) as caught:
        load(tmp_path / f"m{suffix}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(("suffix", "room"), [(".pt", 1000), (".safetensors", 0)])
def test_a_full_disk_leaves_the_previous_file(tmp_path, suffix, room):
    path, old = tmp_path / f"m{suffix}", small_vgg()
    save(path, old)
    new = small_vgg(num_classes=5)
    script = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}]
from slimming import checkpoint as artifact
new = artifact.read({str(tmp_path / "new.pt")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    artifact.save({str(path)!r}, new)
except OSError as error:
    sys.exit(7)
"""
    save(tmp_path / "new.pt", new)
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "new.pt"])
    assert_same_state(load(path).state_dict(), old.weights)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_trace(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new and longer")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_oserror(tmp_path):
    with pytest.raises(OSError):
        save(tmp_path / "none" / "m.pt", small_vgg())


def forbid_downloads(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


def test_torchvisions_builders_come_back_thin(tmp_path, monkeypatch):
    forbid_downloads(monkeypatch)
    target, x = "torchvision.models.squeezenet1_0", torch.randn(2, 3, 64, 64)
    assert len(tree_leaves(build(target, {"num_classes": 4})(x))) == 1
    target = "torchvision.models.resnet18"
    model = randomise(build(target, {"num_classes": 4}))
    graph = trace(model, x)
    thin = slim(model, graph, random_plan(graph, 0.8)).eval()
    save(tmp_path / "m.pt", checkpoint(thin, target, num_classes=4))
    assert torch.equal(load(tmp_path / "m.pt")(x), thin(x))


@pytest.mark.parametrize("name", ["weights", "weights_backbone", "pretrained"])
def test_torchvisions_builders_never_download(monkeypatch, name):
    forbid_downloads(monkeypatch)
    with pytest.raises(ValueError, match=f"'{name}' would be downloaded"):
        build("torchvision.models.resnet18", {name: "DEFAULT"})
    # This one's default is to download a backbone.
    model = build("torchvision.models.segmentation.lraspp_mobilenet_v3_large", {"num_classes": 2})
    assert isinstance(model, nn.Module)


def test_composed_channels_count_from_the_original():
    keep = artifact.compose({"a": [1, 4, 6], "c": [0]}, {"a": torch.tensor([0, 2])})
    assert keep == {"a": [1, 6], "c": [0]}  # what wasn't cut again stays as it was
    assert artifact.compose({}, {"b": torch.tensor([3])}) == {"b": [3]}


def test_a_class_that_asks_for_its_version_comes_back(tmp_path):
    """torchvision's MNASNet refuses a state_dict without one."""
    model = build("torchvision.models.mnasnet0_5", {"num_classes": 3}).eval()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    thin = slim(model, graph, random_plan(graph, 0.6))
    arguments = {"num_classes": 3}
    target, weights = "torchvision.models.mnasnet0_5", thin.state_dict()
    described = Checkpoint(target, arguments, weights, (3, 32, 32))
    save(tmp_path / "thin.pt", described)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "thin.pt")(x), thin(x))


def told(**changed) -> dict:
    facts = {"mean": [0.5, 0.25, 0.1], "std": [0.2, 0.2, 0.3], "resize": 20, "classes": ["a", "b"]}
    return facts | changed


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_deployment_needs_comes_back_and_may_be_left_out(tmp_path, suffix):
    saved = small_vgg()
    assert artifact.deployment(saved) == {}
    for facts in ({}, told(), {"classes": ("x",)}, told(resize=None, classes=None)):
        save(tmp_path / f"m{suffix}", replace(saved, **facts))
        said = {key: list(v) if key != "resize" else v for key, v in facts.items() if v}
        assert artifact.deployment(read(tmp_path / f"m{suffix}")) == said
    described = torch.load(tmp_path / "m.pt", weights_only=True) if suffix == ".pt" else None
    assert described is None or "classes" not in described  # as older files are


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"mean": [0.5] * 4}, "one number each per channel of inputs of shape"),
        ({"mean": [0.5, 0.5, float("nan")]}, "one number each per channel"),
        ({"std": [0.5, 0.5, True]}, "one number each per channel"),
        ({"std": [0.5, 0.0, 0.5]}, "images are divided by std, so it is above 0"),
        ({"std": None}, "mean and std belong together"),
        ({"resize": 0}, "resize is a number of pixels"),
        ({"resize": "large"}, "resize is a number of pixels"),
        ({"classes": "cat"}, "classes are names, one per output; got 'cat'"),
        ({"classes": ["cat", 3]}, "classes are names"),
    ],
)
def test_what_would_lead_a_deployment_astray_is_refused(tmp_path, wrong, sentence):
    """From the user, and from a stranger's file."""
    saved = small_vgg()
    with pytest.raises(ValueError, match=sentence):
        replace(saved, **told(**wrong))
    save(tmp_path / "m.pt", replace(saved, **told()))
    described = torch.load(tmp_path / "m.pt", weights_only=True)
    torch.save({**described, **wrong}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=rf"m\.pt lacks a part of a checkpoint: .*{sentence}"):
        read(tmp_path / "m.pt")


def test_outside_the_repository_the_missing_module_and_the_ways_out_are_named(tmp_path):
    """`slimming` can be installed by itself, `models` can't."""
    shutil.copytree(ROOT / "slimming", tmp_path / "slimming")
    save(tmp_path / "m.pt", small_vgg())
    code = """
import sys
sys.path.insert(0, "")
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from slimming import load
load("m.pt")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == (
        "ValueError: there is no network 'models.vgg.VGG': No module named 'models': run from this "
        "project's folder, or add that to PYTHONPATH, or take along what `export.py to=NAME.py` "
        "writes, which needs no module but torch"
    )
