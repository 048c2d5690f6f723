"""What stays whole by name, and how little a layer keeps by name; and whom a name means."""

import pytest
import torch

from door import tiny
from helpers import configured, random_plan, random_scores, toy_graph
from pipeline import pipeline
from prune import prune
from slimming import plan, slim, trace, verify
from train import train
from utils.report.groups import settings
from utils.runs.folder import read_result
from utils.runs.identity import digest

IMAGE = torch.zeros(2, 3, 16, 16)


@pytest.fixture(scope="module")
def residual():
    model = configured("resnet110")
    return model, trace(model, IMAGE)


def cut(graph, keep) -> set[str]:
    return {gate for gate, kept in keep.items() if len(kept) < len(graph.gates[gate])}


def test_what_is_excluded_stays_whole_and_so_does_what_it_is_tied_to(residual):
    model, graph = residual
    one = "blocks.1.body.4"
    own = set(graph.gates[one].tolist())
    tied = {gate for gate, ids in graph.gates.items() if own & set(ids.tolist())}
    assert len(tied) > 1  # a residual stream
    keep = random_plan(graph, 0.5, exclude=[one])
    assert not cut(graph, keep) & tied and cut(graph, keep)
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, torch.randn(2, 3, 16, 16)).holds


@pytest.mark.parametrize("glob", ["{gate}", "{conv}", "{parent}", "{parent}.*", "*{conv}"])
def test_a_name_is_that_of_a_norm_of_what_writes_it_or_of_a_module_around_them(residual, glob):
    _, graph = residual
    folds = {norm: layer for layer, norm in graph.folds.items()}
    gate, parent = "blocks.1.body.1", "blocks.1.body"
    conv = folds[gate]
    glob = glob.format(gate=gate, conv=conv, parent=parent)
    assert gate not in cut(graph, random_plan(graph, 0.7, exclude=glob))
    alone = random_plan(graph, 0.7, only=glob)
    assert cut(graph, alone) == {gate}


def test_only_cuts_nothing_that_drags_along_what_it_does_not_name(residual):
    _, graph = residual
    keep = random_plan(graph, 0.9, only=["blocks.0.*"])
    assert cut(graph, keep) == {"blocks.0.body.1"}  # the stream begins in the stem
    stream = "blocks.0.body.4"
    with pytest.raises(ValueError, match="go together, so `only` has to name all"):
        random_plan(graph, 0.5, only=[stream])


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.5, 0.9])
def test_a_ratio_is_the_share_of_the_channels_that_may_go(ratio):
    graph = toy_graph(100, 60, 40)
    keep = random_plan(graph, ratio, exclude=["0"])
    assert (keep.free, keep.total) == (100, 200)
    assert keep.total - keep.kept == int(ratio * 100 + 1e-9) and len(keep["0"]) == 100
    assert keep.ratio == pytest.approx(ratio)
    layers = random_plan(graph, ratio, only=["1", "2"], scope="layer")
    assert len(layers["0"]) == 100
    assert len(layers["1"]) == 60 - int(ratio * 60 + 1e-9)


def test_without_names_every_channel_may_go():
    keep = random_plan(toy_graph(8, 8), 0.25)
    assert keep.free == keep.total == 16 and keep.ratio == 1 - keep.kept / keep.total


def test_the_safe_ratio_is_one_of_the_channels_that_may_go():
    graph = toy_graph(10, 10, 10)
    scores = {str(i): i + torch.linspace(0, 0.9, 10) for i in range(3)}
    keep = plan(graph, scores, 0.1, exclude=["0"])
    assert keep.safe_ratio == 0.45  # 9 of 20
    least = plan(graph, scores, 0.45, exclude=["0"], dead="error")
    assert [len(kept) for kept in least.values()] == [10, 1, 10]
    with pytest.raises(ValueError, match="'1' would lose every channel"):
        plan(graph, scores, 0.5, exclude=["0"], dead="error")


def test_a_target_counts_what_stays_whole_too(residual):
    _, graph = residual
    streams = ["stem", "*.body.4"]
    keep = random_plan(graph, None, target={"macs": 0.7}, exclude=streams)
    dense = random_plan(graph, 0)
    assert 0.69 * dense.macs < keep.macs <= 0.7 * dense.macs
    assert all(gate.endswith("body.1") for gate in cut(graph, keep))
    with pytest.raises(ValueError, match="can't be reached"):
        random_plan(graph, None, target={"macs": 0.01}, exclude=streams)


def test_a_branch_with_something_excluded_does_not_go():
    graph = trace(configured("preresnet164"), IMAGE)
    branch = graph.branches[0]
    scores = {gate: torch.ones(len(ids)) for gate, ids in graph.gates.items()}
    scores |= {gate: 0.1 * scores[gate] for gate in branch.gates}
    weak = sum(len(graph.gates[gate]) for gate in branch.gates)
    ratio = weak / graph.num_channels + 1e-6
    assert not len(plan(graph, scores, ratio, dead="bypass")[branch.gates[0]])
    keep = plan(graph, scores, ratio, dead="bypass", exclude=[branch.gates[-1]])
    assert all(len(kept) for kept in keep.values())


@pytest.mark.parametrize("option", ["exclude", "only", "floor"])
@pytest.mark.parametrize(
    ("glob", "sentence"),
    [
        ("layer4.*", "fits no layer of this network: there is"),
        ("features.1O", "did you mean features.1"),
        ("classifier", "changes nothing: no channel there could be cut anyway"),
    ],
)
def test_a_name_that_nothing_has_is_refused_with_near_ones(option, glob, sentence):
    graph = trace(configured("vgg11"), IMAGE)
    value = {glob: 2} if option == "floor" else [glob]
    with pytest.raises(ValueError, match=f"{option}=.*{sentence}"):
        random_plan(graph, 0.5, **{option: value})


@pytest.mark.parametrize("value", [None, 3, [None], [""], {"0": 1}, [["0"]]])
@pytest.mark.parametrize("option", ["exclude", "only"])
def test_what_is_no_list_of_names_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is a list of layers' names"):
        random_plan(toy_graph(4), 0.5, **{option: value})


def test_everything_excluded_is_refused():
    with pytest.raises(ValueError, match=r"exclude=\* leaves nothing that may be cut"):
        random_plan(toy_graph(4), 0.5, exclude=["*"])
    with pytest.raises(ValueError, match="exclude=0 and only=0 leave nothing"):
        random_plan(toy_graph(4, 4), 0.5, exclude="0", only="0")


def test_floors_by_name_hold_each_for_the_layers_it_names():
    graph = toy_graph(20, 20, 20)
    scores = {"0": torch.zeros(20), "1": torch.zeros(20) + 0.1, "2": torch.ones(20)}
    keep = plan(graph, scores, 0.9, floor={"0": 0.5, "1": 3})
    assert [len(kept) for kept in keep.values()] == [10, 3, 1]
    # Where several name a layer, all of them hold, in whatever order they stand.
    for floor in ({"*": 0.25, "0": 0.5}, {"0": 0.5, "*": 0.25}, {"*": 0.25, "[0]": 10}):
        keep = plan(graph, scores, 0.9, floor=floor)
        assert [len(kept) for kept in keep.values()] == [10, 5, 5]
    same = plan(graph, scores, 0.6, floor={"*": 0.25})
    assert all(torch.equal(same[g], plan(graph, scores, 0.6, floor=0.25)[g]) for g in graph.gates)


@pytest.mark.parametrize("floor", [{"0": -1}, {"0": 1.5}, {"0": "a"}, {"0": True}, {0: 1}, {"": 1}])
def test_a_floor_by_name_that_is_none_is_refused(floor):
    with pytest.raises(ValueError, match="floor"):
        random_plan(toy_graph(4), 0.5, floor=floor)


def test_new_options_at_their_defaults_are_the_old_plan():
    old = {"_target_": "slimming.plan", "ratio": 0.5, "floor": 1}
    assert digest(old) == digest({**old, "exclude": (), "only": ()})
    assert digest(old) != digest({**old, "exclude": ["0"]})
    graph = trace(configured("mobilenet_v2"), IMAGE)
    scores = random_scores(graph)
    one, two = plan(graph, scores, 0.5), plan(graph, scores, 0.5, exclude=[], only=[])
    assert all(torch.equal(one[gate], two[gate]) for gate in graph.gates)


def test_on_the_command_line(tmp_path):
    train(tiny("train", tmp_path))
    plain = read_result(prune(tiny("prune", tmp_path, "ratio=0.3")))
    words = ["ratio=0.3", "exclude=[features.0,features.4]", "floor={features.8:0.75,classifier:1}"]
    with pytest.raises(ValueError, match="floor=classifier changes nothing"):
        prune(tiny("prune", tmp_path, *words))
    words[-1] = "floor={features.8:0.75}"
    folder = prune(tiny("prune", tmp_path, *words))
    assert "excludefeatures.0+features.4" in folder.name
    widths = read_result(folder)["widths"]
    kept = {name: now / before for name, (now, before) in widths.items()}
    assert kept["features.1"] == kept["features.5"] == 1 and kept["features.9"] >= 0.75
    # Order doesn't matter, one name needs no list, and the report tells such cuts apart.
    again = ["exclude=[features.4,features.0]", *words[::2]]
    assert prune(tiny("prune", tmp_path, *again)) == folder
    assert prune(tiny("prune", tmp_path, "ratio=0.3", "exclude=[]")).name == plain["name"]
    told = settings(read_result(folder))
    assert told["exclude"] == ["features.0", "features.4"] or told["exclude"] == again[0]
    assert not {"exclude", "only"} & settings(plain).keys()


def test_a_pipeline_says_it_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="exclude=layer4 fits no layer"):
        pipeline(tiny("pipeline", tmp_path, "exclude=layer4"))
    assert not [*tmp_path.glob("*/model.pt")]
