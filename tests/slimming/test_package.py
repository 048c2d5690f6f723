"""The package by itself: what it needs, and the ten lines of a user who has a training loop."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

README = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)


def test_the_readmes_lines_work(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8)) for _ in range(3)]
    names: dict = {"batches": batches}
    exec(compile(README, "README", "exec"), names)  # our own text
    thin, keep, images = names["thin"], names["keep"], batches[-1][0]
    assert (tmp_path / "thin.pt").is_file()
    assert keep.kept == keep.total - int(0.7 * keep.total)
    assert sum(p.numel() for p in thin.parameters()) == keep.params
    assert keep.params < sum(p.numel() for p in names["model"].parameters())
    assert not torch.equal(names["model"].features[1].weight, torch.full((8,), 0.5))
    assert thin(images).shape == (8, 10)


def test_the_package_needs_only_torch_and_safetensors():
    script = """
import sys
before = set(sys.modules)
import torch, safetensors.torch
allowed = set(sys.modules)
import slimming, slimming.checkpoint, slimming.methods.slimming
new = {name.partition(".")[0] for name in set(sys.modules) - allowed}
new -= set(sys.stdlib_module_names) | {"torch", "safetensors", "slimming"}
print(sorted(new))
forbidden = {"utils", "models", "hydra", "omegaconf", "torchvision", "wandb", "engine"}
sys.exit(bool(forbidden & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_readmes_names_are_what_the_package_offers():
    import slimming

    assert sorted(slimming.__all__) == slimming.__all__
    assert all(hasattr(slimming, name) for name in slimming.__all__)
