"""Structural changes are data and happen in place: whoever holds a module holds the changed one."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from helpers import (
    assert_same_state,
    configured,
    configured_networks,
    random_plan,
    random_scores,
    randomise,
    relative_gap,
    without,
)
from slimming import Slimming, fold, load, plan, save, slim, trace, verify
from slimming.checkpoint import Checkpoint, compose, read
from slimming.graph.resize import resize
from slimming.methods.sparsity import gammas
from slimming.modules.bypass import stands_in
from slimming.modules.selection import gate_of, name_in, named_norms, select, selects
from slimming.planning.planner import predict
from slimming.surgery.builder import fit_shapes
from slimming.surgery.edits import EDITS, edits_in
from zoo import PICTURE, Dense, PreActivation, conv

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def cut(model: nn.Module, ratio: float = 0.5, **options) -> nn.Module:
    graph = trace(model, torch.zeros(1, *PICTURE))
    return slim(model, graph, random_plan(graph, ratio, **options))


class Listed(nn.Module):
    """Forward reaches its layers by a plain list, as many write a body."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn1, self.c1 = conv(3, 8), nn.BatchNorm2d(8), conv(8, 8)
        self.bn2, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.body = [(self.bn1, self.c1)]
        self.end = {"conv": conv(8, 8), "norm": self.bn2}
        self.tail = self.end["conv"]

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in self.body:
            x = x + layer(F.relu(norm(x)))
        x = F.relu(self.end["norm"](self.end["conv"](F.relu(self.last(x)))))
        return self.fc(x.mean((2, 3)))


def test_a_plain_list_holds_the_cut_layers_and_the_folded_ones():
    model = randomise(Listed()).double().eval()
    x = torch.randn(2, *PICTURE, dtype=torch.float64)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    assert graph.selecting == ("bn1", "last") and thin.body[0][0] is thin.bn1
    assert verify(model, graph, keep, thin, x).holds
    folded = fold(thin, x)
    assert isinstance(folded.end["norm"], nn.Identity) and folded.end["norm"] is folded.bn2
    assert relative_gap(folded(x), thin(x)) < 1e-9
    branches = without(graph, graph.branches)
    thin = slim(model, graph, branches)
    assert stands_in(thin.body[0][0]) and stands_in(thin.body[0][1])
    assert verify(model, graph, branches, thin, x).holds


TOOLS = {
    "script": lambda model, x: torch.jit.script(model),
    "trace": lambda model, x: torch.jit.trace(model, x),
    "fx": lambda model, x: fx.symbolic_trace(model),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "compile": lambda model, x: torch.compile(model, fullgraph=True, backend="eager"),
    "sync": lambda model, x: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", [PreActivation, Dense])
@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_take_a_thin_network_with_selections(tool, kind, layout):
    model = randomise(kind()).to(memory_format=layout).eval()
    thin, x = cut(model), torch.randn(2, *PICTURE).to(memory_format=layout)
    assert any(map(selects, thin.modules()))
    with torch.no_grad():
        assert relative_gap(TOOLS[tool](thin, x)(x), thin(x)) < 1e-5


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_take_a_thin_network_without_some_branches(tool):
    thin, _ = thin_of_every_kind()
    x = torch.randn(2, 3, 16, 16)
    assert any(map(stands_in, thin.modules()))
    with torch.no_grad():
        assert relative_gap(TOOLS[tool](thin, x)(x), thin(x)) < 1e-5


def test_norms_are_synchronised_and_back_without_losing_a_selection():
    model = randomise(PreActivation()).double().eval()
    thin, x = cut(model), torch.randn(2, *PICTURE, dtype=torch.float64)
    expected, saved = thin(x), thin.state_dict()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(thin)
    assert {type(norm) for _, norm in named_norms(synchronised)} == {nn.SyncBatchNorm}
    assert_same_state(synchronised.state_dict(), saved)
    assert torch.equal(synchronised(x), expected)
    for module in list(synchronised.modules()):  # as Lightning does it
        for name, norm in module.named_children():
            if isinstance(norm, nn.SyncBatchNorm):
                plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
                plain.__dict__.update(norm.__dict__)
                setattr(module, name, plain)
    assert torch.equal(synchronised.eval()(x), expected)
    assert edits_in(synchronised.state_dict()) == edits_in(saved) != []


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a norm with a forward and an attribute of its own."""

    def __init__(self, channels: int, slope: float):
        super().__init__(channels)
        self.act = nn.LeakyReLU(slope)

    def forward(self, x):
        return self.act(super().forward(x)) * self.factor

    factor = 2.0


def test_any_norm_can_select_and_stays_what_it_is():
    norm = Activated(4, 0.25).eval()
    randomise(nn.Sequential(norm))
    norm.factor = 3.0
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append((module, args[0].shape)))
    x, index = torch.randn(2, 8, 3, 3), torch.tensor([1, 2, 5, 7])
    expected, old = norm(x[:, index]), norm
    select(norm, index, 8)
    assert norm is old and type(norm.norm) is Activated
    assert torch.equal(norm(x), expected)
    assert seen[-1] == (norm.norm, (2, 4, 3, 3)) and len(seen) == 2
    assert norm.factor == 3.0 and norm.num_features == 4  # for code that knows but the norm
    with pytest.raises(AttributeError, match="'Activated' object has no attribute 'nothing'"):
        norm.nothing  # noqa: B018
    assert torch.equal(copy.deepcopy(norm)(x), expected)


def test_a_gate_keeps_its_name_behind_a_selection():
    model = randomise(PreActivation())
    model.add_module("norm", nn.BatchNorm2d(3))  # a norm called norm that isn't inside one
    thin = cut(model)
    assert selects(thin.bn1a)
    assert gate_of(thin, "bn1a.norm") == "bn1a" and gate_of(thin, "norm") == "norm"
    assert [gate for gate, _ in named_norms(thin)] == [gate for gate, _ in named_norms(model)]
    assert list(gammas(thin)) == list(gammas(model))
    assert trace(thin, torch.zeros(1, *PICTURE)).gates.keys() >= {"bn1a", "bn1b"}
    scores = Slimming().scores(thin, trace(thin, torch.zeros(1, *PICTURE)))
    assert torch.equal(scores["bn1a"], thin.bn1a.norm.weight.abs())
    for name in model.state_dict():
        assert name_in(thin, name) in thin.state_dict()


class Blind(nn.Module):
    """A DenseNet whose stem's weight is computed, so that its norm can't be cut with it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.utils.parametrizations.weight_norm(conv(3, 6))
        self.first, self.n1, self.c1 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), conv(6, 4)
        self.n2, self.fc = nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.first(self.stem(x))
        x = torch.cat([x, self.c1(F.relu(self.n1(x)))], 1)
        return self.fc(F.relu(self.n2(x)).mean((2, 3)))


class Side(nn.Module):
    """The stem's map is also read beside the norm, whose output two selections read."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = conv(3, 6), nn.BatchNorm2d(6)
        self.a, self.b = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.ca, self.cb = conv(6, 5), conv(6, 5)
        self.side, self.fc = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.first(x)
        y = self.ca(F.relu(self.a(y))) + self.cb(F.relu(self.b(y)))
        return self.fc(y.mean((2, 3))) + self.side(x.mean((2, 3)))


@pytest.mark.parametrize("ratio", [0.5, 0.8])
@pytest.mark.parametrize("kind", [Blind, Side])
def test_channels_that_nobody_reads_stay_where_their_norm_cannot_lose_them(kind, ratio):
    model = randomise(kind()).eval()
    x = torch.randn(2, *PICTURE)
    graph = trace(model, x)
    keep = plan(graph, random_scores(graph), ratio, unread="remove")
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, x).holds
    assert sum(p.numel() for p in thin.parameters()) == keep.params


def test_a_plain_copy_of_a_plan_says_as_well_that_what_nobody_reads_goes():
    model = randomise(PreActivation()).eval()
    graph = trace(model, torch.randn(2, *PICTURE))
    whole = plan(graph, random_scores(graph), 0.8)
    keep = plan(graph, random_scores(graph), 0.8, unread="remove")
    assert keep.params < whole.params and list(whole) == list(graph.gates)
    for copied in (dict(keep), {**keep}):
        thin = slim(model, graph, copied)
        assert sum(p.numel() for p in thin.parameters()) == keep.params == predict(graph, copied)[0]
        assert verify(model, graph, copied, thin, torch.randn(2, *PICTURE)).holds
    assert compose({}, keep).keys() == graph.gates.keys()
    kept = {gate: index.tolist() for gate, index in keep.items()}
    assert Checkpoint("x.y", {}, {}, PICTURE, keep=kept).keep.keys() == graph.gates.keys()


def test_memory_layout_and_marks_of_parameters_stay():
    model = randomise(PreActivation()).to(memory_format=torch.channels_last)
    model.conv1a.weight.no_decay = True
    model.stem.weight.data = torch.randn(8, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    model.stem.padding = (0, 0)
    thin = cut(model)
    assert thin.conv1a.weight.shape != model.conv1a.weight.shape
    assert thin.conv1a.weight.is_contiguous(memory_format=torch.channels_last)
    assert not thin.conv1a.weight.is_contiguous()
    assert thin.conv1a.weight.no_decay is True and not hasattr(thin.conv1b.weight, "no_decay")
    plain = cut(model.to(memory_format=torch.contiguous_format))
    assert all(p.is_contiguous() for p in plain.parameters())


class Anything(nn.Module):
    """Tensors of every kind, some under two names or in a plain list."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.again, self.held = self.scale, [self.scale]
        self.many = nn.ParameterList([torch.randn(6), torch.randn(2, 6)])
        self.named = nn.ParameterDict({"a": torch.randn(6, 3)})
        self.register_buffer("mean", torch.randn(6))
        self.inner = nn.Module()
        self.inner.register_buffer("mean", self.mean)
        self.plain = torch.randn(6)
        self.lstm = nn.LSTM(6, 3, bidirectional=True)
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))


def test_tensors_of_any_name_are_cut_once():
    model, index = Anything(), torch.tensor([0, 2, 5])
    before = copy.deepcopy(model)
    rows = ("scale", "again", "many.0", "named.a", "mean", "inner.mean", "plain")
    columns = ("many.1", "lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse")
    columns += ("first.parametrizations.weight.original1",)
    resize(model, {**{n: [(0, index)] for n in rows}, **{n: [(1, index)] for n in columns}})
    assert torch.equal(model.scale, before.scale[index])
    assert model.again is model.scale is model.held[0] and model.inner.mean is model.mean
    assert torch.equal(model.mean, before.mean[index])
    assert torch.equal(model.plain, before.plain[index])
    assert torch.equal(model.many[0], before.many[0][index])
    assert torch.equal(model.many[1], before.many[1][:, index])
    assert torch.equal(model.named["a"], before.named["a"][index])
    assert model.lstm.input_size == 3 and model.lstm(torch.randn(2, 1, 3))[0].shape == (2, 1, 6)
    assert model.first.in_features == 3 and model.first(torch.randn(2, 3)).shape == (2, 4)
    assert len(list(model.parameters())) == len(list(before.parameters()))
    again = Anything()
    fit_shapes(again, model.state_dict())
    again.load_state_dict(model.state_dict())
    assert_same_state(again.state_dict(), model.state_dict())
    assert again.again is again.scale and again.lstm.input_size == again.first.in_features == 3


@pytest.mark.parametrize(
    ("module", "cuts", "sizes"),
    [
        (nn.PReLU(6), {"weight": 0}, {"num_parameters": 4}),
        (nn.GroupNorm(3, 6), {"weight": 0, "bias": 0}, {"num_channels": 4, "num_groups": 2}),
        (nn.InstanceNorm2d(6, affine=True), {"weight": 0, "bias": 0}, {"num_features": 4}),
        (nn.GRU(6, 5), {"weight_ih_l0": 1}, {"input_size": 4}),
        (nn.Embedding(9, 6), {"weight": 1}, {"embedding_dim": 4}),
        (nn.LayerNorm(6), {"weight": 0, "bias": 0}, {"normalized_shape": (4,)}),
        (nn.RMSNorm(6), {"weight": 0}, {"normalized_shape": (4,)}),
        (nn.Linear(6, 6), {"weight": 1}, {"in_features": 4, "out_features": 6}),
        (nn.ConvTranspose2d(6, 5, 3), {"weight": 0}, {"in_channels": 4, "out_channels": 5}),
        (
            nn.Conv2d(6, 12, 3, groups=6),
            {"weight": torch.arange(8), "bias": torch.arange(8)},
            {"in_channels": 4, "out_channels": 8, "groups": 4},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_sizes_that_a_module_repeats_follow_its_tensors(module, cuts, sizes):
    four = torch.tensor([0, 1, 2, 5])
    resize(module, {n: [(d, four)] if isinstance(d, int) else [(0, d)] for n, d in cuts.items()})
    assert {name: getattr(module, name) for name in sizes} == sizes


def test_a_deformable_convolution_follows_its_tensors():
    ops = pytest.importorskip("torchvision.ops")
    layer, four = ops.DeformConv2d(6, 6, 3), torch.tensor([0, 1, 2, 5])
    resize(layer, {"weight": [(0, four), (1, four)], "bias": [(0, four)]})
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 4, 1)
    assert layer(torch.randn(1, 4, 5, 5), torch.zeros(1, 18, 3, 3)).shape == (1, 4, 3, 3)


def thin_of_every_kind() -> tuple[nn.Module, Checkpoint]:
    """Selections, a branch that is gone, channels that nobody read; and its checkpoint."""
    target, arguments = configured_networks()["preresnet164"]
    model = configured("preresnet164")
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    scores = random_scores(graph)
    for gate in graph.branches[0].gates:
        scores[gate] = torch.zeros_like(scores[gate])
    keep = plan(graph, scores, 0.6, dead="bypass", unread="remove")
    thin = slim(model, graph, keep).eval()
    kept = {gate: indices.tolist() for gate, indices in keep.items()}
    return thin, Checkpoint(target, arguments, thin.state_dict(), (3, 16, 16), kept)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_says_what_was_changed(tmp_path, suffix):
    thin, saved = thin_of_every_kind()
    save(tmp_path / f"m{suffix}", saved)
    told = read(tmp_path / f"m{suffix}").edits
    assert told == saved.edits == edits_in(thin.state_dict())
    assert {kind for _, kind, _ in told} == {"select", "removed", "constant"}
    assert not any(name.endswith(".removed") for name in saved.weights)
    loaded, x = load(tmp_path / f"m{suffix}"), torch.randn(2, 3, 16, 16)
    assert str(loaded) == str(thin) and torch.equal(loaded(x), thin(x))
    assert edits_in(loaded.state_dict()) == told  # and again
    other = replace(saved, weights={}, edits=[]).of(thin)
    assert other.edits == told and other.weights.keys() == saved.weights.keys()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_folded_network_comes_back(tmp_path, suffix):
    thin, saved = thin_of_every_kind()
    x = torch.randn(2, 3, 16, 16)
    folded = fold(thin, x)
    save(tmp_path / f"m{suffix}", saved.of(folded))
    loaded = load(tmp_path / f"m{suffix}")
    assert "folded" in {kind for _, kind, _ in read(tmp_path / f"m{suffix}").edits}
    assert_same_state(loaded.state_dict(), folded.state_dict())
    assert torch.equal(loaded(x), folded(x))


def test_a_file_of_before_is_still_read(tmp_path):
    """Schema 1: the names of buffers said what had been changed."""
    thin, saved = thin_of_every_kind()
    inside = [path for path, kind, _ in saved.edits if kind == "select"]
    weights = {}
    for name, tensor in saved.weights.items():
        path = name.rpartition(".")[0]
        old = name.replace(".norm.", ".") if path.removesuffix(".norm") in inside else name
        weights[old] = tensor
    gone = [path for path, kind, _ in saved.edits if kind == "removed"]
    weights |= {f"{path}.removed": torch.empty(0) for path in gone}
    described = {
        "format": "network-slimming",
        "schema": 1,
        "target": saved.target,
        "arguments": saved.arguments,
        "input_shape": [3, 16, 16],
        "keep": saved.keep,
        "history": [],
    }
    torch.save({**described, "weights": weights}, tmp_path / "old.pt")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(load(tmp_path / "old.pt")(x), thin(x))
    save(tmp_path / "again.pt", read(tmp_path / "old.pt"))  # as it is
    assert torch.equal(load(tmp_path / "again.pt")(x), thin(x))
    now = read(tmp_path / "old.pt").of(load(tmp_path / "old.pt"))
    save(tmp_path / "new.pt", now)
    assert {path for path, *_ in now.edits} == {path for path, *_ in saved.edits}
    assert torch.equal(load(tmp_path / "new.pt")(x), thin(x))
    foreign = {**weights, "nowhere.index": torch.arange(2)}
    torch.save({**described, "weights": foreign}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="changes 'nowhere', which the network lacks"):
        load(tmp_path / "b.pt")


def lies(saved: Checkpoint) -> list[tuple[Checkpoint, str]]:
    path, _, _ = next(edit for edit in saved.edits if edit[1] == "select")
    others = [edit for edit in saved.edits if edit[0] != path]
    index = saved.weights[f"{path}.index"]
    gate, kept = next((gate, kept) for gate, kept in saved.keep.items() if len(kept) > 1)

    def weights(**changed):
        return replace(saved, weights={**saved.weights, **changed})

    def edits(*changed):
        return replace(saved, edits=[*others, *changed])

    nan = saved.weights["classifier.bias"] * torch.nan
    return [
        (weights(**{f"{path}.index": index + 10_000}), f"'{path}' selects channels"),
        (weights(**{f"{path}.index": index - 10_000}), f"'{path}' selects channels"),
        (weights(**{f"{path}.index": 0 * index}), "each at most once"),
        (weights(**{"classifier.bias": nan}), "'classifier.bias' is NaN or infinite"),
        (replace(saved, keep={**saved.keep, gate: [0, 10_000]}), f"'{gate}' kept channels"),
        (replace(saved, keep={**saved.keep, gate: [-1, 2]}), f"'{gate}' kept channels"),
        (replace(saved, keep={**saved.keep, gate: kept[1:]}), "channels, but it has"),
        (edits(), "which the network lacks"),
        (edits((path, "melt", {})), "'melt' is none of constant, folded, removed, select"),
        (edits((path, "select", {"width": 10_000})), "can't read 10000 of the"),
        (edits((path, "select", {"width": "all"})), "can't read 'all' of the"),
        (edits((path, "select", {"height": 3})), "isn't possible: .*'height'"),
        (edits(("nowhere", "select", {"width": 3})), "'nowhere', which the network lacks"),
        (edits(("classifier", "select", {"width": 3})), "isn't possible: it is a Linear"),
        (edits((path, "constant", {"bias": True})), "isn't possible: it is a BatchNorm2d"),
    ]


@pytest.mark.parametrize("which", range(15))
def test_a_checkpoint_that_lies_is_refused_in_a_sentence(tmp_path, which):
    _, saved = thin_of_every_kind()
    checkpoint, sentence = lies(saved)[which]
    save(tmp_path / "m.pt", checkpoint)
    with pytest.raises(ValueError, match=sentence) as caught:
        load(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edits", [3, [3], [["a", "select"]], [["a", "select", 3]], [[1, 2, {}]]])
def test_edits_of_another_kind_are_refused(tmp_path, edits):
    _, saved = thin_of_every_kind()
    save(tmp_path / "m.pt", saved)
    torch.save({**torch.load(tmp_path / "m.pt"), "edits": edits}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt lacks a part of a checkpoint"):
        read(tmp_path / "m.pt")


def test_a_further_kind_of_edit_is_a_class_and_a_function(tmp_path, monkeypatch):
    from slimming.modules.selection import Edited, become

    class Scaled(Edited):
        kind = "scaled"

        def __init__(self, layer, by):
            super().__init__()
            self.layer, self.by = layer, by

        def arguments(self):
            return {"by": self.by}

        def forward(self, x):
            return self.by * self.layer(x)

    def scale(model, path, by):
        layer = model.get_submodule(path)
        inner = copy.copy(layer)
        become(layer, Scaled(inner, by))

    monkeypatch.setitem(EDITS, "scaled", scale)
    _, saved = thin_of_every_kind()
    save(tmp_path / "m.pt", saved)
    model, x = load(tmp_path / "m.pt"), torch.randn(2, 3, 16, 16)
    expected = 3 * model(x)
    scale(model, "classifier", 3)
    save(tmp_path / "m.pt", saved.of(model))
    assert torch.equal(load(tmp_path / "m.pt")(x), model(x))
    assert relative_gap(model(x), expected) < 1e-6
