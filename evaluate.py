"""Any checkpoint, dense or thin, ours or a VGG of the official PyTorch port -> accuracy and costs.

    python evaluate.py runs/<name>
    python evaluate.py results/digits_thin.safetensors
    python evaluate.py results/cifar10_thin.safetensors data=cifar10 data.root=../datasets
    python evaluate.py model_best.pth.tar data=cifar10

Costs need no data. Accuracy is measured on the data the network was trained on, or on data=...
"""

from utils.cli.script import begin, script

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("evaluate")

from pathlib import Path

from hydra.utils import instantiate

import stages
from slimming import checkpoint as artifact
from utils.cli.configured import plain
from utils.networks.cost import count, count_macs_thop, latency
from utils.runs.parent import Parent, find_parent


def evaluate_checkpoint(cfg) -> dict:
    """Print and return {"params": ..., "macs": ..., "accuracy": {...}, "latency": {...}}."""
    hardware = instantiate(cfg.hardware)
    path = find_parent(cfg.ckpt, cfg.runs_dir, lambda result: True, "run `python train.py` first")
    parent = Parent.open(path)
    checkpoint = parent.checkpoint
    model = artifact.restore(checkpoint, tuple(cfg.allow))
    file = path / "model.pt" if path.is_dir() else Path(path)
    costs = count(model, checkpoint.input_shape)
    del costs["layers"]
    found = {
        "network": f"{checkpoint.target} {checkpoint.arguments}",
        **costs,
        "bytes": file.stat().st_size,
    }
    if cfg.macs_thop:
        found["macs_thop"] = count_macs_thop(model, checkpoint.input_shape)
    for key, value in found.items():
        print(f"{key:>12}  {value:,}" if isinstance(value, int) else f"{key:>12}  {value}")
    if cfg.latency:
        found["latency"] = latency(
            {"this": hardware.place(model)}, checkpoint.input_shape, device=hardware.device
        )["this"]
        for batch, times in found["latency"].items():
            print(f"{f'batch {batch}':>12}  {times['median_ms']:.2f} ms")
    data = parent.data(plain(cfg.get("data")), hardware)
    model = parent.model(tuple(cfg.allow), data, hardware)
    found["accuracy"] = stages.accuracies(model, data, hardware)
    for split, share in found["accuracy"].items():
        if share is not None:
            print(f"{split:>12}  {100 * share:.2f} % of {len(getattr(data, split)):,} images")
    return found


@script("evaluate")
def main(cfg) -> None:
    evaluate_checkpoint(cfg)


if __name__ == "__main__":
    main()
