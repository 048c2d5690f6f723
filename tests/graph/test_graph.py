"""What is found: chains, known turns, foreign networks."""

import torch

from odd import zoo
from slimming import plan
from zoo import ZOO


def test_a_private_gate_cuts_its_producer_itself_and_its_consumer():
    graph = zoo("conv with bias")
    assert list(graph.gates) == ["body.1", "body.4"] and not graph.selecting and not graph.fixed
    first, second = graph.gates.values()
    assert first.tolist() == list(range(6)) and second.tolist() == list(range(6, 15))
    for tensor, dim in [("body.0.weight", 0), ("body.0.bias", 0), ("body.3.weight", 1)]:
        assert torch.equal(graph.dims[tensor, dim], first)
    assert ("body.0.weight", 1) not in graph.dims  # it reads the image
    assert ("fc.weight", 0) not in graph.dims  # it is the network's output
    assert graph.reads == (("body.3.weight", 1), ("fc.weight", 1))


def test_flattening_repeats_each_channel_over_its_positions():
    graph = zoo("flatten of a map")
    assert torch.equal(graph.dims["fc.weight", 1], graph.gates["body.4"].repeat_interleave(64))
    graph = zoo("reshape and permute")
    assert torch.equal(graph.dims["fc.weight", 1], graph.gates["body.4"].repeat(64))


def test_explain_has_one_row_per_norm():
    rows = {row["gate"]: row for row in zoo("dense").explain()}
    assert list(rows) == ["bn1", "bn2", "bn3", "stem.1"]
    assert rows["bn1"] == {
        "gate": "bn1",
        "channels": 6,
        "how": "through channel selection",
        "with": ["conv1.weight[1]"],
    }
    assert rows["stem.1"]["how"] == "stays: 'bn1' selects among channels that others read too"
    (stem,) = [row for row in zoo("conv with bias").explain() if row["gate"] == "body.1"]
    assert stem["how"] == "cut"
    assert stem["with"] == ["body.0.weight[0]", "body.0.bias[0]", "body.3.weight[1]"]


def test_an_addition_couples_two_norms():
    graph = zoo("residual")
    assert torch.equal(graph.gates["bn2"], graph.gates["bn3"])
    assert graph.num_channels == 6 + 7 + 8
    scores = {gate: torch.ones(len(ids)) for gate, ids in graph.gates.items()}
    scores["bn2"], scores["bn3"] = torch.arange(8.0) - 4, 3 - torch.arange(8.0)
    scores["bn2"][5] = -9.0  # their mean decides
    keep = plan(graph, scores, 0.05)  # 1 of 21
    assert keep["bn2"].tolist() == keep["bn3"].tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_concatenation_shifts_the_channels():
    graph = zoo("concat")
    both = torch.cat([graph.gates["a.1"], graph.gates["b.1"]])
    assert torch.equal(graph.dims["c.0.weight", 1], both)
    assert both.tolist() == list(range(12))


def test_depthwise_convolutions_carry_the_channels_along():
    graph = zoo("depthwise")
    assert torch.equal(graph.gates["1"], graph.gates["4"])
    assert torch.equal(graph.gates["10"], graph.gates["7"].repeat_interleave(2))
    assert ("3.weight", 1) not in graph.dims


def test_groups_go_as_a_whole():
    graph = zoo("groups")
    assert graph.gates["1"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert graph.gates["4"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert graph.num_channels == 4 + 6


def test_a_norm_on_a_stream_read_by_others_selects():
    graph = zoo("pre-activation")
    assert graph.selecting == ("bn1a", "bn2a", "bn") and not graph.fixed
    assert not any(name.startswith("stem") for name, _ in graph.dims)


def test_squeeze_excitation_is_carried_along():
    graph = zoo("squeeze-excitation")
    channels = graph.gates["body.1"]
    for tensor, dim in [("up.weight", 0), ("up.bias", 0), ("down.weight", 1), ("fc.weight", 1)]:
        assert torch.equal(graph.dims[tensor, dim], channels)


def test_halves_that_are_split_and_shuffled_are_cut_in_pairs():
    channels = zoo("shuffle").gates["body.1"]
    assert torch.equal(channels[:4], channels[4:])


def test_heads_that_exist_in_training_only_are_found():
    graph = zoo("auxiliary head")
    assert torch.equal(graph.dims["extra.weight", 1], graph.gates["a.1"])


def test_a_layer_called_twice_is_tied_to_itself():
    graph = zoo("called twice")
    assert torch.equal(graph.gates["stem.1"], graph.gates["bn"])
    assert torch.equal(graph.dims["conv.weight", 0], graph.dims["conv.weight", 1])


def test_the_fingerprint_tells_networks_apart():
    graphs = {name: zoo(name).fingerprint for name in ZOO}
    assert len(set(graphs.values())) > 0.8 * len(ZOO)  # some differ in operations without weights
    assert zoo("residual").fingerprint == graphs["residual"] != graphs["pre-activation"]
