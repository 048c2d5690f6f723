"""What leaves the project: ONNX, programs that need nothing but torch, plain data; all checked."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from door import config, shell
from export import export
from helpers import configured_networks, random_plan, randomise, without
from slimming import checkpoint as artifact
from slimming import load, recalibrate, slim, trace
from slimming.checkpoint import Checkpoint, build
from slimming.modules.bypass import stands_in
from utils.exports import onnx_file, standalone
from utils.exports.layers import constructor

CONFIGURED = ("densenet40", "mlp", "mobilenet_v2", "preresnet164", "vgg_a")
TORCHVISION = ("mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5")
RUNNER = """
import runpy, sys, torch
for name in sys.argv[1:]:
    images, expected = torch.load(name + ".io")
    got = runpy.run_path(name + ".py")["load"]()(images)
    assert torch.equal(got, expected), (name, (got - expected).abs().max())
loaded = {key.split(".")[0] for key in sys.modules}
foreign = loaded & {"slimming", "models", "utils", "torchvision"}
assert not foreign, foreign
"""


def store(folder, name, target, arguments, shape=(3, 16, 16), cut=random_plan):
    """A network with random weights as a checkpoint, thin unless cut=None; returns its path."""
    torch.manual_seed(0)
    thin = randomise(build(target, arguments, allow=["own_nets"])).eval()
    if cut is not None:
        graph = trace(thin, torch.zeros(2, *shape))
        thin = slim(thin, graph, cut(graph))
    images = torch.randn(16, *shape)
    recalibrate(thin, [images])  # else nothing of the images gets through
    with torch.no_grad():
        outputs = tree_leaves(thin.eval()(images))[0]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2 * outputs.abs().max()
    path = folder / f"{name}.pt"
    history = [{"stage": "test", "note": 'a "quoted" word, a \\ and """'}]
    artifact.save(path, Checkpoint(target, arguments, thin.state_dict(), shape, history=history))
    return path


def source(folder, name, **options):
    """The same for a network that the tests know by a word."""
    if name in configured_networks():
        target, arguments = configured_networks()[name]
        return store(folder, name, target, arguments, **options)
    target = f"torchvision.models.{name}"
    return store(folder, name, target, {"num_classes": 5}, (3, 64, 64), **options)


def bypassed(graph):
    return without(graph, graph.branches[:2])


def run(path, to, *options):
    return export(config("export", f"ckpt={path}", f"to={to}", "latency=false", *options))


def facts_of(program):
    """The JSON in the docstring of an exported program."""
    doc = ast.get_docstring(ast.parse(program.read_text()), clean=False)
    return json.loads(doc[doc.index("{") :])


def facts_in(file):
    """The same of an ONNX file."""
    import onnx

    props = onnx.load(str(file), load_external_data=False).metadata_props
    return json.loads({prop.key: prop.value for prop in props}[onnx_file.KEY])


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    return source(tmp_path_factory.mktemp("vgg"), "vgg13")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a user's module `own_nets`; returns a function that stores a thin network of it."""

    def stored(code, **options):
        (tmp_path / "own_nets.py").write_text(HEADER + code)
        return store(tmp_path, "own", "own_nets.Net", {}, **options)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return stored


HEADER = """
import math, operator, torch, torch.nn.functional as F
from torch import nn

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def body(self, x):
        return self.conv2(F.relu(self.bn(self.conv(x))))
"""


def test_a_program_runs_alone_and_computes_what_its_source_does(tmp_path):
    """In an empty folder, isolated from this project: bit for bit, for networks of every kind."""
    alone = tmp_path / "alone"
    alone.mkdir()
    names = [*CONFIGURED, *TORCHVISION]
    for name in names:
        path = source(tmp_path, name)
        done = run(path, alone / f"{name}.py")
        assert done["difference"] == 0.0, name
        network = load(path)
        images = torch.randn(5, *artifact.read(path).input_shape)
        with torch.no_grad():
            expected = network(images)
        torch.save([images, expected], alone / f"{name}.io")
    (alone / "runner").write_text(RUNNER)
    command = [sys.executable, "-I", "runner", *names]
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_says_what_it_is_and_is_plain_to_read(tmp_path):
    path = source(tmp_path, "preresnet164")
    to = tmp_path / "deployed" / "thin.py"
    to.parent.mkdir()
    run(path, to)
    text = to.read_text()
    facts = facts_of(to)
    checkpoint = artifact.read(path)
    assert facts["target"] == checkpoint.target
    assert facts["history"] == checkpoint.history
    assert facts["arguments"] == checkpoint.arguments
    assert facts["params"] == sum(p.numel() for p in load(path).parameters())
    assert facts["parity"]["largest_relative_difference"] == 0.0
    body = checkpoint.weights["blocks.0.body.5.weight"]
    built = f"nn.Conv2d({body.shape[1]}, {body.shape[0]}, 3, padding=1, bias=False)"
    assert f"self.blocks_0_body_5 = {built}" in text
    assert "blocks_0_body_0_index = self.blocks_0_body_0_index" in text
    assert ".index_select(1, blocks_0_body_0_index)" in text
    assert "blocks_0_shortcut = self.blocks_0_shortcut(" in text
    weights = torch.load(to.with_suffix(".weights.pt"), weights_only=True)
    assert weights.keys() == standalone.open_file(to).state_dict().keys()
    done = subprocess.run([sys.executable, "-I", "thin.py"], cwd=to.parent, capture_output=True)
    assert done.stdout.decode().strip() == "(2, 7)", done.stderr


@pytest.mark.parametrize("name", ["mobilenet_v2", "preresnet164", "resnet110"])
def test_a_network_without_whole_branches_becomes_a_program(tmp_path, name):
    path = source(tmp_path, name, cut=bypassed)
    assert any(map(stands_in, load(path).modules()))
    assert run(path, tmp_path / "thin.py")["difference"] == 0.0
    run(path, tmp_path / "folded.py", "fold=true")
    assert "Constant(" in (tmp_path / "thin.py").read_text()


@pytest.mark.parametrize("suffix", ["py", "onnx", "pt", "safetensors"])
def test_no_file_says_where_it_was_made(tmp_path, monkeypatch, suffix):
    """Folders tell user names and customers; the names of files are kept."""
    path = source(tmp_path, "mlp")
    said = {"root": "/home/secret/digits", "file": r"C:\Users\secret\w.pt", "home": "~secret/x.pt"}
    checkpoint = artifact.read(path)
    checkpoint.history.append({"stage": "train", "data": said, "list": ["/secret/a", "b/c"]})
    artifact.save(path, checkpoint)
    words = ["export.py", "ckpt='/secret/m.pt'", "to=/secret/my files/x", "allow=[/secret/a,b]"]
    monkeypatch.setattr(sys, "argv", words)
    to = tmp_path / f"thin.{suffix}"
    run(path, to)
    assert b"secret" not in to.read_bytes()
    if suffix in ("py", "onnx"):
        facts = facts_of(to) if suffix == "py" else facts_in(to)
        assert facts["command"] == "python export.py 'ckpt='\"'\"'m.pt'\"'\"'' to=x 'allow=[a,b]'"
    else:
        facts = {"history": artifact.read(to).history}
    last = facts["history"][-1]
    assert last["data"] == {"root": "digits", "file": "w.pt", "home": "x.pt"}
    assert last["list"] == ["a", "b/c"]


def test_an_onnx_file_takes_any_batch_and_says_what_it_is(tmp_path):
    """With channel selection and a removed branch inside, in one file without paths of ours."""
    import onnxruntime

    target, arguments = configured_networks()["preresnet164"]
    arguments = arguments | {"depth": 11}
    path = store(tmp_path, "thin", target, arguments, cut=bypassed)
    to = tmp_path / "thin.onnx"
    done = run(path, to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thin.onnx", "thin.pt"]
    session = onnxruntime.InferenceSession(str(to))
    network = load(path)
    for size in (1, 2, 7):
        images = torch.randn(size, 3, 16, 16)
        (got,) = session.run(["output"], {"input": images.numpy()})
        expected = network(images).detach()
        assert (torch.from_numpy(got) - expected).abs().max() < 1e-5 * expected.abs().max()
    facts = facts_in(to)
    assert facts["target"] == target and facts["history"] == artifact.read(path).history
    assert facts["parity"]["largest_relative_difference"] == done["difference"] < 1e-5
    assert b"site-packages" not in to.read_bytes() and b"preresnet.py" not in to.read_bytes()


def test_folding_leaves_no_batchnorm_where_it_can(vgg, tmp_path):
    done = run(vgg, tmp_path / "folded.py", "fold=true")
    assert 0 < done["difference"] < 1e-5
    assert "BatchNorm" not in (tmp_path / "folded.py").read_text().split('"""')[2]
    half = run(vgg, tmp_path / "half.py", "half=true")
    assert half["bytes"] < 0.6 * run(vgg, tmp_path / "whole.py")["bytes"]
    for suffix in ("pt", "safetensors"):
        with pytest.raises(ValueError, match="fold=true is for files that are only run"):
            run(vgg, tmp_path / f"no.{suffix}", "fold=true")


def test_every_export_times_the_thin_network_beside_the_dense_one(vgg, tmp_path, capsys):
    done = export(config("export", f"ckpt={vgg}", f"to={tmp_path / 'thin.onnx'}"))
    times = done["latency"]
    assert times.pop("threads") == torch.get_num_threads()
    assert set(times) == {"torch", "torch, BatchNorm folded", "onnxruntime"}
    for networks in times.values():
        assert set(networks) == {"dense", "thin"}
        for batches in networks.values():
            assert set(batches) == {"1", "64"}
            for quartiles in batches.values():
                assert 0 < quartiles["q1_ms"] <= quartiles["median_ms"] <= quartiles["q3_ms"]
    said = capsys.readouterr().out
    assert "1 CPU thread" in said and said.count("thin/dense") == 6
    again = export(config("export", f"ckpt={vgg}", f"to={tmp_path / 'thin.pt'}"))
    assert set(again["latency"]) == {"threads", "torch", "torch, BatchNorm folded"}


def test_what_takes_too_long_to_time_is_left_out_with_a_word(vgg, tmp_path, monkeypatch, capsys):
    from utils.exports import timing

    monkeypatch.setattr(timing, "LIMIT", 1e-9)
    done = export(config("export", f"ckpt={vgg}", f"to={tmp_path / 'thin.pt'}"))
    assert done["latency"]["torch"] == {"dense": {}, "thin": {}}
    assert "batch 64: left out" in capsys.readouterr().out


def test_a_dense_network_is_timed_alone(tmp_path):
    path = source(tmp_path, "mlp", cut=None)
    done = export(config("export", f"ckpt={path}", f"to={tmp_path / 'dense.py'}"))
    assert set(done["latency"]["torch"]) == {"this"}


DICT = """
class Net(Base):
    def forward(self, x):
        x = self.body(x)
        return {"out": self.fc(x.mean((2, 3))), "map": x}
"""


def test_outputs_by_name_keep_their_names(own, tmp_path):
    path = own(DICT)
    run(path, tmp_path / "thin.onnx", "allow=[own_nets]")
    run(path, tmp_path / "thin.py", "allow=[own_nets]")
    assert 'return {"out"' in (tmp_path / "thin.py").read_text().replace("'", '"')
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "thin.onnx"))
    assert [output.name for output in session.get_outputs()] == ["out", "map"]


ODD = """
class Net(Base):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.lambda_ = nn.Sequential(nn.Identity(), nn.Softmax(dim=-1))

    def forward(self, x, shift: float = 0.5):
        y = self.body(x) * self.scale
        x = y + torch.tensor([1.0, 2.0, 3.0]).repeat(2)[:, None, None]
        x += y.relu_()
        n, _, h, w = x.shape
        x = x[..., : h // 2, -w:].reshape(n, 6, -1).mean(-1) - -shift
        x = F.gelu(x) ** 2 + y.amax((2, 3)) * float("1e-3") * math.sqrt(abs(operator.neg(h)))
        x = x + torch.zeros(1, device=torch.device("cpu"), dtype=torch.float32)
        return self.lambda_(self.fc(torch.clamp(x, max=float("inf"))))
"""


def test_code_of_every_kind_can_be_written_down(own, tmp_path):
    """Constants, parameters, slices, in-place sums, defaults, names that Python reserves."""
    assert run(own(ODD, cut=None), tmp_path / "thin.py", "allow=[own_nets]")["difference"] == 0.0


LAYERS = {
    "nn.BatchNorm2d(4, affine=False)": nn.BatchNorm2d(4, affine=False),
    "nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)": nn.ConvTranspose2d(
        4, 6, 3, stride=2, output_padding=1, groups=2
    ),
    "nn.Conv2d(3, 4, (3, 5), padding='same', bias=False)": nn.Conv2d(
        3, 4, (3, 5), padding="same", bias=False
    ),
    "nn.LayerNorm((7, 7))": nn.LayerNorm((7, 7)),
    "nn.Upsample(scale_factor=2.0)": nn.Upsample(scale_factor=2),
    "nn.LPPool2d(inf, 2)": nn.LPPool2d(float("inf"), 2),
}


def test_a_layer_is_written_as_the_call_that_makes_it():
    for text, layer in LAYERS.items():
        assert constructor(layer) == text
    for refused in (nn.LSTM(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))):
        with pytest.raises(ValueError):
            constructor(refused)


TWO_NAMES = """
class Net(Base):
    def forward(self, x):
        y = x = self.body(x)
        x += 1.0
        return self.fc((x * y).mean((2, 3)))
"""


def test_what_a_trace_misses_is_caught_by_the_check(own, tmp_path):
    """torch.fx takes `x += 1` for `x = x + 1`, so the other name keeps the old value."""
    path = own(TWO_NAMES, cut=None)
    with pytest.raises(RuntimeError, match="was not written, its outputs would differ .*two names"):
        run(path, tmp_path / "thin.py", "allow=[own_nets]")


REFUSED = {
    "a hook": """
class Net(Base):
    def __init__(self):
        super().__init__()
        self.fc.register_forward_hook(lambda module, inputs, output: 2 * output)
    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))
""",
    "no function of torch": """
def twice(x):
    return 2 * x
torch.fx.wrap("twice")
class Net(Base):
    def forward(self, x):
        return self.fc(twice(self.body(x)).mean((2, 3)))
""",
    "torch.ops.torchvision": """
import torchvision
class Net(Base):
    def forward(self, x):
        x = self.body(x)
        kept = torch.ops.torchvision.nms(x.flatten()[:8].view(2, 4), x.flatten()[:2], 0.5)
        return self.fc(x.mean((2, 3))) + kept.sum()
""",
    "it returns a str": """
class Net(Base):
    def forward(self, x):
        y = self.fc(self.body(x).mean((2, 3)))
        return y if isinstance(x, torch.fx.Proxy) or len(x) > 2 else "a cat"
""",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cant_be_written_down_is_refused(own, tmp_path, reason):
    path = own(REFUSED[reason], cut=None)
    (tmp_path / "thin.py").write_text(standalone.MARK)
    with pytest.raises(ValueError, match=f"Net can't be written as a Python file .*{reason}"):
        run(path, tmp_path / "thin.py", "allow=[own_nets]")
    assert (tmp_path / "thin.py").read_text() == standalone.MARK
    assert sorted(p.name for p in tmp_path.glob("*thin*")) == ["thin.py"]


FIXED = """
class Net(Base):
    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.fc(x * (1.0 if float(x.detach().sum()) > 0 else 2.0))
"""


def test_onnx_refuses_in_a_sentence(own, tmp_path, monkeypatch):
    """Control flow that depends on values; and a missing package."""
    path = own(FIXED, cut=None)
    for suffix in ("onnx", "py"):
        with pytest.raises(ValueError, match="Net can't be written as .*holds any network"):
            run(path, tmp_path / f"thin.{suffix}", "allow=[own_nets]")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript onnxruntime"):
        run(path, tmp_path / "thin.onnx", "allow=[own_nets]")


@pytest.mark.parametrize("to", ["old.safetensors", "old.py"])
def test_an_export_that_fails_its_check_replaces_nothing(vgg, tmp_path, to):
    """Here because the network's outputs are beyond float32, and infinity equals nothing."""
    broken = artifact.read(vgg)
    broken.weights["classifier.weight"].fill_(3e38)
    artifact.save(tmp_path / "broken.pt", broken)
    files = {tmp_path / to, tmp_path / "old.weights.pt"}
    for file in files:
        file.write_bytes(standalone.MARK.encode())
    with pytest.raises(RuntimeError, match="was not written, its outputs would differ by nan"):
        run(tmp_path / "broken.pt", tmp_path / to)
    assert all(file.read_bytes() == standalone.MARK.encode() for file in files)
    assert set(tmp_path.iterdir()) == files | {tmp_path / "broken.pt"}


WRONG = [
    ("thin.h5", [], "the name ends in .safetensors, .pt, .onnx, .py"),
    ("nowhere/thin.py", [], "there is no folder"),
    ("json.py", [], "would hide"),
    ("torch.py", [], "would hide"),
    ("mine.py", [], "a program of yours"),
    ("folder.onnx", [], "is a folder"),
    ("source.pt", ["half=true"], "is the checkpoint itself"),
    ("thin.onnx", ["half=true"], "half=true is for .safetensors"),
]


@pytest.mark.parametrize(("to", "options", "sentence"), WRONG)
def test_a_wrong_destination_is_one_sentence(vgg, tmp_path, to, options, sentence):
    path = shutil.copy(vgg, tmp_path / "source.pt")
    (tmp_path / "mine.py").write_text("print('precious')")
    (tmp_path / "folder.onnx").mkdir()
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        run(path, tmp_path / to, *options)
    assert {p.name for p in tmp_path.iterdir()} == before
    assert (tmp_path / "mine.py").read_text() == "print('precious')"


def test_a_folder_that_cant_be_written_to_is_named(vgg):
    with pytest.raises(OSError, match="can't write to the folder /proc .*choose another place"):
        run(vgg, "/proc/thin.pt")


def test_the_shell_exports(vgg, tmp_path):
    done = shell("export", str(vgg), f"to={tmp_path / 'thin.py'}")
    assert done.returncode == 0 and "thin/dense" in done.stdout, done.stderr
    assert facts_of(tmp_path / "thin.py")["command"].startswith("python export.py ")
    done = shell("export", str(vgg), "to=thin.h5")
    assert done.returncode == 1 and done.stderr.startswith("error: to=thin.h5: the name ends in")
    assert done.stderr.count("\n") == 1
