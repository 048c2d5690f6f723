"""A checkpoint -> one file of plain data, checked against its source.

    python export.py runs/<name> to=thin.safetensors half=true

`from slimming import load; load("thin.safetensors")` opens it, without tracing and without pickle.
"""

from pathlib import Path

from utils.cli import script


def export(cfg) -> Path:
    """Write `to`, compare its outputs with the source's, and return its path."""
    from dataclasses import replace

    import torch

    from slimming import artifact
    from utils import stages

    if cfg.to is None:
        raise ValueError("say which file to write: to=NAME.safetensors")
    path = stages.find_parent(cfg, lambda result: True, "run `python train.py` first")
    checkpoint, to = artifact.read(path), Path(cfg.to)
    weights = {
        name: tensor.half() if cfg.half and tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.weights.items()
    }
    trial = to.with_name(f".trial-{to.name}")  # what was there before stays until this is checked
    artifact.save(trial, replace(checkpoint, weights=weights))
    source = artifact.restore(checkpoint, tuple(cfg.allow))
    written = artifact.load(trial, tuple(cfg.allow))
    images = torch.randn(16, *checkpoint.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = source(images), written(images)
    difference = ((expected - got).abs().max() / expected.abs().max()).item()
    if not difference <= (1e-2 if cfg.half else 0.0):
        trial.unlink()
        raise RuntimeError(
            f"{to} was not written: its outputs would differ by {difference:.1e} (relative)"
            + ("; try half=false" if cfg.half else "")
        )
    trial.replace(to)
    print(f"{to}: {to.stat().st_size:,} bytes; its outputs differ by {difference:.1e} (relative)")
    return to


@script("export", positional="ckpt")
def main(cfg) -> None:
    export(cfg)


if __name__ == "__main__":
    main()
