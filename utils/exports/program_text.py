"""The text of an exported program around its network: what it needs, what it is, how it is used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pprint import pformat
from typing import Any

from torch import Tensor

MARK = "# Written by export.py of network-slimming"
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's word for such images

HEAD = (
    f"{MARK}\n"
    + '''r"""{name}, for inference; needs nothing but torch, and {weights} beside it.

{usage}

{facts}
"""

{imports}import sys
from pathlib import Path

import torch
from torch import nn

WEIGHTS = Path(__file__).with_suffix(".weights.pt")
MEAN = {mean}  # per channel, of images in 0..1
STD = {std}
SIZE = {size}  # height and width of an input
CLASSES = {classes}
'''
)

LOAD = '''

def load(weights=WEIGHTS):
    """The network with its weights, on the CPU, in eval mode."""
    if not Path(weights).exists():
        raise FileNotFoundError(f"{weights} is missing: this program and its weights go together")
    model = Network()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()
'''

PREPROCESS = '''

def preprocess(photo):
    """A picture of Pillow -> float32 (1, {sizes}): scaled, its centre cut out, normalised."""
    (height, width), (high, wide) = SIZE, {resize}
    scale = max(high / photo.height, wide / photo.width)
    large = max(wide, round(scale * photo.width)), max(high, round(scale * photo.height))
    photo = photo.convert("{mode}").resize(large, 2)  # 2: bilinear
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    photo = photo.crop((left, top, left + width, top + height))
    pixels = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8)
    image = pixels.view(height, width, {channels}).permute(2, 0, 1) / 255
    return ((image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]
'''

CLASSIFY = '''

def classify(model, photo):
    """A picture of Pillow -> (the likeliest class, its probability)."""
    with torch.no_grad():
        shares = model(preprocess(photo)).softmax(1)[0]
    best = int(shares.argmax())
    return CLASSES[best] if CLASSES else best, float(shares[best])


if __name__ == "__main__" and len(sys.argv) > 1:
    from PIL import Image

    model = load()
    for name in sys.argv[1:]:
        found, share = classify(model, Image.open(name))
        print(f"{name}: {found} ({share:.1%})")
    sys.exit()
'''

TAIL = """

if __name__ == "__main__":
    with torch.no_grad():
        outputs = load()(torch.randn(2, {sizes}))
    {show}
"""
SHOW = {
    Tensor: "print(tuple(outputs.shape))",
    dict: "print({name: tuple(value.shape) for name, value in outputs.items()})",
    tuple: "print([tuple(value.shape) for value in outputs])",
    list: "print([tuple(value.shape) for value in outputs])",
}

USAGE = """    model = load()
    scores = model(images)  # float32 (N, {sizes}), {how}"""
OF_PHOTOS = """    from PIL import Image

    model = load()
    scores = model(preprocess(Image.open("photo.jpg")))  # float32 (1, {sizes}) goes in
{more}
A picture is scaled until both sides are {resize} or more, its centre of {size} cut out;
its values in 0..1, minus MEAN, over STD, are the input."""
OF_CLASSES = """    name, probability = classify(model, Image.open("photo.jpg"))

or, in a shell, `python {file} photo.jpg`.
"""


@dataclass(frozen=True)
class Program:
    """A network as text and tensors."""

    name: str
    input_shape: tuple[int, ...]
    imports: list[str]
    body: list[str]  # the lines of its classes
    outputs: type  # Tensor, dict, tuple or list
    weights: dict[str, Tensor]


def write(
    program: Program, file: str, weights: str, facts: Mapping[str, Any], told: Mapping[str, Any]
) -> str:
    """The whole file.

    Args:
        file, weights: what the two files are called.
        facts: what the docstring says the network is.
        told: "mean", "std", "resize", "classes" of its images, as far as they are known.
    """
    shape = program.input_shape
    size, sizes = shape[1:], ", ".join(map(str, shape))
    photos = "mean" in told and len(shape) == 3 and shape[0] in MODES
    single = photos and program.outputs is Tensor
    resize = (told["resize"],) * 2 if told.get("resize") else size
    words = {
        "file": file,
        "sizes": sizes,
        "channels": shape[0],
        "mode": MODES.get(shape[0]),
        "resize": resize,
        "size": size,
        "more": OF_CLASSES.format(file=file) if single else "",
        "how": "normalised with MEAN and STD" if "mean" in told else "normalised as in training",
        "show": SHOW[program.outputs],
    }
    classes = list(told["classes"]) if "classes" in told else None
    head = HEAD.format(
        name=program.name,
        weights=weights,
        usage=(OF_PHOTOS if photos else USAGE).format(**words),
        facts=json.dumps(facts, indent=1),
        imports="".join(f"{line}\n" for line in program.imports),
        mean=told.get("mean"),
        std=told.get("std"),
        size=size,
        classes=pformat(classes, width=96, compact=True),
    )
    parts = [LOAD, PREPROCESS * photos, CLASSIFY * single, TAIL]
    after = "".join(part if part == LOAD else _filled(part, words) for part in parts)
    return head + "\n".join(program.body) + "\n" + after


def _filled(part: str, words: Mapping[str, Any]) -> str:
    """`part` with the words put in; other braces are Python's."""
    for name, word in words.items():
        part = part.replace(f"{{{name}}}", str(word))
    return part
