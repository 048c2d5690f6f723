"""What a deployed file would gain from other widths is said with the figure; the clock is ours."""

import pytest
import torch
from torch import nn

from door import config
from export import export
from helpers import random_plan
from slimming import checkpoint as artifact
from slimming import slim, trace
from slimming.checkpoint import Checkpoint, build
from utils.exports import advice, timing

NETWORK = ("models.vgg.VGG", {"depth": 11, "width": 0.25})
SHAPE = (3, 16, 16)
TIMED = {"dense": 13.1, "thin": 37.9}  # milliseconds


def thin_file(folder, **options):
    torch.manual_seed(0)
    model = build(*NETWORK).eval()
    graph = trace(model, torch.zeros(2, *SHAPE))
    keep = random_plan(graph, 0.5, **options)
    kept = {gate: index.tolist() for gate, index in keep.items()}
    state = slim(model, graph, keep).state_dict()
    artifact.save(folder / "thin.pt", Checkpoint(*NETWORK, state, SHAPE, keep=kept))
    return folder / "thin.pt"


@pytest.fixture
def clock(monkeypatch):
    """Like onnxruntime's: a width that is no multiple of 8 costs as much as twice the next one."""

    def latency(models, input_shape, sizes, repeats=2, warmup=1):
        found = {}
        for name, model in models.items():
            widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
            cost = 0.01 * sum(w if w % 8 == 0 else 2 * (w + 8) for w in widths)
            spread = {"median_ms": cost, "q1_ms": 0.99 * cost, "q3_ms": 1.01 * cost}
            found[name] = {str(size): spread for size in sizes}
        return found

    monkeypatch.setattr(timing, "latency", latency)


def exported(path, capsys) -> tuple[list[str], str]:
    done = export(config("export", f"ckpt={path}", f"to={path.with_suffix('.safetensors')}"))
    return done["advice"], capsys.readouterr().out


def test_a_file_slower_than_the_dense_network_and_the_width_that_helps_are_said(
    tmp_path, clock, capsys
):
    said, out = exported(thin_file(tmp_path), capsys)
    assert all(f"note: {sentence}" in out for sentence in said)
    assert [s for s in said if s.startswith("slower than the dense network: ")]
    (better,) = [s for s in said if "rounded to multiples of 8" in s]
    assert "instead of" in better and " ms in torch at batch 64" in better
    assert "round_to=8" in better
    words = ("instead of ", "it would take ")
    now, then = (float(better.split(word)[1].split(" ms")[0]) for word in words)
    assert then < now


def test_nothing_is_said_of_a_file_that_is_as_fast_as_it_can_be(tmp_path, clock, capsys):
    said, out = exported(thin_file(tmp_path, round_to=8), capsys)
    assert said == [] and "note" not in out


def test_widths_that_would_not_help_are_said_only_where_something_is_slow(tmp_path, monkeypatch):
    path = thin_file(tmp_path)
    checkpoint = artifact.read(path)
    dense, thin = build(*NETWORK).eval(), artifact.restore(checkpoint)

    def quartiles(ms):
        return {"64": {"median_ms": ms, "q1_ms": ms, "q3_ms": ms}}

    def same(runtime, pair, *_):
        return {name: quartiles(5.0) for name in pair}

    monkeypatch.setattr(advice, "measure", same)
    for slow, count in ((9.0, 2), (3.0, 0)):
        times = {"torch": {"dense": quartiles(4.0), "thin": quartiles(slow)}}
        said = advice.sentences(times, "torch", dense, thin, checkpoint.keep, SHAPE)
        assert len(said) == count
        if count:
            assert said[1].startswith("widths rounded to multiples of 8 don't help: 5 ms")
    # Within the clock's noise nothing is slower.
    near = {"dense": quartiles(4.0), "thin": quartiles(4.1)}
    assert advice.sentences({"torch": near}, "torch", dense, thin, checkpoint.keep, SHAPE) == []


def test_other_widths_are_tried_in_the_runtime_of_the_file(tmp_path, monkeypatch):
    checkpoint = artifact.read(thin_file(tmp_path))
    dense, thin = build(*NETWORK).eval(), artifact.restore(checkpoint)
    tried = []

    def measure(runtime, pair, input_shape, sizes):
        tried.append((runtime, sizes, [type(made) for made in pair.values()]))
        ms = {"thin": 37.9, "rounded": 7.9}
        return {n: {"64": {"median_ms": t, "q1_ms": t, "q3_ms": t}} for n, t in ms.items()}

    monkeypatch.setattr(advice, "measure", measure)
    monkeypatch.setattr(advice, "session", lambda network, shape: lambda images: network(images))
    times = {n: {"64": {"median_ms": t, "q1_ms": t, "q3_ms": t}} for n, t in TIMED.items()}
    said = advice.sentences(
        {"onnxruntime": times}, "onnxruntime", dense, thin, checkpoint.keep, SHAPE
    )
    assert said == [
        "slower than the dense network: 37.9 ms instead of 13.1 ms in onnxruntime at batch 64",
        "with widths rounded to multiples of 8 it would take 7.9 ms instead of 37.9 ms in "
        "onnxruntime at batch 64: cut again with `python prune.py ... round_to=8`",
    ]
    ((runtime, sizes, kinds),) = tried
    assert (runtime, sizes) == ("onnxruntime", [64])
    assert not any(issubclass(kind, nn.Module) for kind in kinds), "sessions, not torch's networks"
    # A runtime that wasn't timed says nothing.
    assert advice.sentences({}, "onnxruntime", dense, thin, checkpoint.keep, SHAPE) == []


def test_the_network_that_is_timed_has_the_nearest_multiples():
    torch.manual_seed(0)
    dense = build(*NETWORK).eval()
    graph = trace(dense, torch.zeros(2, *SHAPE))
    keep = random_plan(graph, 0.5)
    other = advice._in_multiples(dense, {g: k.tolist() for g, k in keep.items()}, SHAPE)
    for gate, kept in keep.items():
        width = other.get_submodule(gate).num_features
        assert width % 8 == 0 and (abs(width - len(kept)) <= 4 or width == 8)
    whole = random_plan(graph, 0.5, round_to=8)
    assert advice._in_multiples(dense, {g: k.tolist() for g, k in whole.items()}, SHAPE) is None
    assert advice._in_multiples(dense, {"features.1": [99]}, SHAPE) is None


class Bare(nn.Module):
    """A convolution that no BatchNorm scores adds to the only stream."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)) + self.other(images))


def test_what_only_unscored_prune_cuts_is_rounded_as_well():
    dense = Bare().eval()
    graph = trace(dense, torch.zeros(2, *SHAPE), unscored="prune")
    keep = {gate: kept.tolist() for gate, kept in random_plan(graph, 0.5).items()}
    assert keep and not trace(dense, torch.zeros(2, *SHAPE)).gates
    other = advice._in_multiples(dense, keep, SHAPE)
    assert len(keep["norm"]) == 4 and other.norm.num_features == 8
    assert advice._in_multiples(dense, {}, SHAPE) is None  # all of it stayed
