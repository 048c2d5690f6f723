"""Where and how a network runs: what is refused, and what torch is told."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from utils.training.hardware import choose


@pytest.mark.parametrize("device", ["quantum", "mps", "meta", "xpu", ""])
def test_a_device_that_computes_nothing_is_refused_in_one_short_sentence(device):
    if device in ("mps", "xpu") and getattr(torch, device).is_available():
        pytest.skip("this machine has one")
    with pytest.raises(
        ValueError, match=f"^device={device} can't be used .*; try device=cpu$"
    ) as said:
        choose(device=device)
    assert "Could not run" not in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compile", "maybe"),
        ("compile", None),
        ("channels_last", "maybe"),
        ("sync_batchnorm", 1),
        ("deterministic", "yes please"),
        ("threads", "two"),
        ("threads", 2.5),
        ("threads", True),
        ("save_minutes", "soon"),
        ("save_minutes", float("nan")),
    ],
)
def test_an_option_of_hardware_is_what_it_says(option, value):
    with pytest.raises(ValueError, match=rf"^hardware\.{option} is .*; got {value!r}$"):
        choose(device="cpu", **{option: value})


def test_fp32_is_not_tf32_and_a_run_can_be_made_to_repeat():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    try:
        cudnn.benchmark = True
        choose(device="cpu", precision="fp32", deterministic=True)
        assert not cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
        assert cudnn.deterministic and not cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
        hardware = choose(device="cpu", precision="bf16")
        assert cudnn.allow_tf32 and not cudnn.deterministic
        assert not torch.are_deterministic_algorithms_enabled()
        assert "deterministic" not in hardware.identity
        asked = replace(hardware, deterministic=True)
        assert asked.identity["deterministic"] is True, "another result on a GPU has another name"
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize(("load", "threads", "says"), [(8, 2, True), (8, 1, False), (1, 2, False)])
def test_a_busy_machine_is_told_to_take_one_thread(monkeypatch, capsys, load, threads, says):
    from utils.training import hardware

    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    hardware._warn_if_busy.cache_clear()
    for _ in range(2):
        choose(device="cpu").place(nn.Linear(2, 2))
    assert capsys.readouterr().out.count("hardware.threads=1 may be many times as fast") == says
    hardware._warn_if_busy.cache_clear()


def strided(channels: int) -> nn.Module:
    layers = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, 1, stride=2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_narrow_shortcut_is_laid_out_so_that_no_kernel_writes_beyond_it():
    """Where this fails, torch's backward crashes on processors without AVX-512."""
    cpu, wide, narrow = choose(device="cpu", precision="fp32"), strided(8), strided(7)
    assert cpu.lays_channels_last(wide) and not cpu.lays_channels_last(narrow)
    assert replace(cpu, device=torch.device("cuda")).lays_channels_last(narrow)
    narrow.to(memory_format=torch.channels_last)  # as it comes out of a cut
    weight = cpu.place(narrow)[1].weight
    assert weight.is_contiguous() and weight.stride() == (7, 1, 1, 1)
    for _ in range(30):
        cpu.place(narrow)(torch.randn(4, 3, 34, 34)).sum().backward()
