"""A network as one ONNX file (opset and weights included), and onnxruntime to run it.

The batch is dynamic: the file takes any number of images.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from slimming.checkpoint import write_atomically
from slimming.surgery.builder import reason_of

KEY = "network-slimming"  # under which the file says what it is, in its metadata
# How the other keys make a photo an input; said where mean and std are.
PREPROCESS = (
    "a photo is scaled (bilinear) until both sides are `resize`, or without it `input_size`, or "
    "more; its centre of `input_size` (height, width) is cut out; values in 0..1, minus `mean`, "
    "over `std`, channels first, are the input"
)


def convert(model: nn.Module, input_shape: Sequence[int]) -> Any:
    """The ONNX program of a network in eval mode; `save` writes it.

    Its input is called "input", its output "output"; several are called by their keys or numbers.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the network does something that ONNX can't express.
    """
    check_installed("to=NAME.onnx")
    example = torch.zeros(2, *input_shape)  # 0 and 1 would be taken for constants
    try:
        with torch.no_grad():
            outputs = model(example)
        return torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["input"],
            output_names=_names(outputs),
            verbose=False,
        )
    except Exception as error:  # torch's exporter passes on whatever a network's own code raises
        name = type(model).__name__
        raise ValueError(
            f"{name} can't be written as ONNX ({reason_of(error)}); "
            f"to=NAME.safetensors holds any network"
        ) from error


def save(path: Path, program: Any, facts: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Write the program with `facts` in its metadata, and what a deployment needs under keys of
    its own; JSON all of it."""
    graph = program.model.graph
    for noted in (graph, *graph, *graph.initializers.values()):
        noted.metadata_props.clear()  # traces of torch's and the user's files, with their paths
    how = {"preprocess": PREPROCESS} if "mean" in told else {}
    for key, value in {KEY: facts, **told, **how}.items():
        program.model.metadata_props[key] = json.dumps(value)
    data = program.model_proto.SerializeToString()
    write_atomically(path, lambda file: file.write(data))


def open_file(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """A function from a batch to the outputs in order; as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(None, {name: batch.numpy()})]

    return run


def _names(outputs: Any) -> list[str]:
    if isinstance(outputs, Tensor):
        return ["output"]
    flat, _ = tree_flatten_with_path(outputs)
    return ["_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in way) for way, _ in flat]


def check_installed(wish: str) -> None:
    """
    Raises:
        ImportError: what writes and runs ONNX files isn't there; `wish` needs it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{wish} needs three more packages: pip install onnx onnxscript onnxruntime"
        ) from error
