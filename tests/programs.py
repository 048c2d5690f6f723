"""Random networks, each a short program on maps: what people write, in any order."""

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Do(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, way: Callable[..., Tensor], **layers: nn.Module | Tensor):
        super().__init__()
        self.way = way
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.way(self, *maps)


def conv(num_in: int, num_out: int, size: int = 3, kind: type = nn.Conv2d, **options) -> nn.Module:
    return kind(num_in, num_out, size, padding=size // 2, **options)


def block(num_in: int, num_out: int, **options) -> nn.Sequential:
    return nn.Sequential(conv(num_in, num_out, **options), nn.BatchNorm2d(num_out), nn.ReLU())


class Standardised(nn.Conv2d):
    """Each row of its weight has mean 0."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Activated(nn.BatchNorm2d):
    """A norm with a forward and an activation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def from_tokens(x: Tensor, like: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.size(0), x.size(2), *like.shape[2:])


def attention(s: Do, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    q, k, v = s.qkv(tokens(x)).view(b, h * w, 3, -1).unbind(2)
    mixed = (q @ k.transpose(1, 2) * q.size(-1) ** -0.5).softmax(-1) @ v
    return s.norm(from_tokens(s.out(mixed), x))


def shuffled(s: Do, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def written(s: Do, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1]
    return y


def looped(s: Do, x: Tensor) -> Tensor:
    if x.size(2) % 2:  # only shapes decide
        x = F.pad(x, (0, 0, 0, 1))
    return x + F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:])


def own_norm(s: Do, x: Tensor) -> Tensor:
    return F.batch_norm(x, s.mean, s.var, s.gamma, s.beta, s.training)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def flipped(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: output.flip(1))
    return layer


# What reads one map of `c` channels: (what to do, how many channels it gives).
Step = Callable[[random.Random, int], tuple[nn.Module, int]]
STEPS: dict[str, Step] = {}


def step(name: str, least: int = 1, multiple: int = 1):
    """Mark a function as a step, for maps with so many channels; others pass as they are."""

    def mark(make: Step) -> Step:
        def fits(r: random.Random, c: int) -> tuple[nn.Module, int]:
            return make(r, c) if c >= least and c % multiple == 0 else (nn.ReLU(), c)

        STEPS[name] = fits
        return make

    return mark


def same(name: str, make: Callable[[int], nn.Module], least: int = 1, multiple: int = 1) -> None:
    """A step that gives as many channels as it reads."""
    step(name, least, multiple)(lambda r, c: (make(c), c))


def wide(name: str, make: Callable[[int, int], nn.Module]) -> None:
    """A step that gives any number of channels."""

    def any_width(r: random.Random, c: int) -> tuple[nn.Module, int]:
        out = r.randint(2, 6)
        return make(c, out), out

    step(name)(any_width)


wide("block", block)
wide("block without bias", lambda c, o: block(c, o, bias=False))
wide("norm first", lambda c, o: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), conv(c, o)))
wide("transposed", lambda c, o: block(c, o, kind=nn.ConvTranspose2d))
wide("same padding", lambda c, o: nn.Sequential(nn.Conv2d(c, o, 3, padding="same"), Activated(o)))
wide("standardised", lambda c, o: nn.Sequential(conv(c, o, kind=Standardised), nn.BatchNorm2d(o)))
wide("hooked", lambda c, o: nn.Sequential(flipped(conv(c, o)), nn.BatchNorm2d(o)))
wide(
    "channels last",
    lambda c, o: Do(lambda s, x: s.fc(x.movedim(1, -1)).movedim(-1, 1), fc=nn.Linear(c, o)),
)
wide(
    "functional",
    lambda c, o: Do(
        lambda s, x: s.norm(F.conv2d(x, s.w, padding=1)),
        w=parameter(o, c, 3, 3),
        norm=nn.BatchNorm2d(o),
    ),
)
wide(
    "own norm",
    lambda c, o: Do(
        lambda s, x: own_norm(s, s.conv(x)),
        conv=conv(c, o),
        mean=nn.Buffer(torch.zeros(o)),
        var=nn.Buffer(torch.ones(o)),
        gamma=parameter(o),
        beta=parameter(o),
    ),
)
wide(
    "attention",
    lambda c, o: Do(attention, qkv=nn.Linear(c, 12), out=nn.Linear(4, o), norm=nn.BatchNorm2d(o)),
)
wide(
    "recurrent",
    lambda c, o: Do(
        # Down each column: torch takes every step of a sequence one by one.
        lambda s, x: (
            s.gru(x.permute(0, 3, 2, 1).flatten(0, 1))[0]
            .unflatten(0, (x.shape[0], x.shape[3]))
            .permute(0, 3, 2, 1)
            .contiguous()
        ),
        gru=nn.GRU(c, o, batch_first=True),
    ),
)
wide(
    "checkpointed",
    lambda c, o: Do(lambda s, x: checkpoint(s.block, x, use_reentrant=False), block=block(c, o)),
)
same(
    "residual",
    lambda c: Do(
        lambda s, x: x + s.body(x), body=nn.Sequential(nn.BatchNorm2d(c), block(c, 4), conv(4, c))
    ),
)
same(
    "residual, norm last",
    lambda c: Do(
        lambda s, x: x + s.norm(s.conv(s.body(x))),
        body=block(c, 4),
        conv=conv(4, c),
        norm=nn.BatchNorm2d(c),
    ),
)
same(
    "layer scale",
    lambda c: Do(lambda s, x: x + s.scale * s.body(x), scale=parameter(c, 1, 1), body=block(c, c)),
)
same("norm", nn.BatchNorm2d)
same("depthwise", lambda c: block(c, c, groups=c))
same("shared", lambda c: Do(lambda s, x: s.block(s.block(x)), block=block(c, c)))
same(
    "squeeze",
    lambda c: Do(
        lambda s, x: x * s.fc(x.mean((2, 3)))[:, :, None, None],
        fc=nn.Sequential(nn.Linear(c, 2), nn.ReLU(), nn.Linear(2, c), nn.Sigmoid()),
    ),
)
same("slopes", nn.PReLU)
same("flip", lambda c: Do(lambda s, x: x.flip(1)))
same(
    "positions", lambda c: Do(lambda s, x: x.view(x.size(0), x.size(1), -1).softmax(-1).view_as(x))
)
same("scaled by positions", lambda c: Do(lambda s, x: x * (x.size(2) * x.size(3)) ** -0.5))
same("scaled by width", lambda c: Do(lambda s, x: x * x.size(1) ** -0.5))
same("stacked", lambda c: Do(lambda s, x: torch.stack([x, x.tanh(), x.relu()]).sum(0)))
same("written", lambda c: Do(written))
same("looped", lambda c: Do(looped))
same("instance norm", lambda c: nn.InstanceNorm2d(c, affine=True))
same("group norm", lambda c: nn.GroupNorm(2, c), multiple=2)
same(
    "layer norm", lambda c: Do(lambda s, x: from_tokens(s.norm(tokens(x)), x), norm=nn.LayerNorm(c))
)
same("drop path", lambda c: Do(lambda s, x: x * x.new_empty(len(x), 1, 1, 1).fill_(0.5)))
same("mask", lambda c: Do(lambda s, x: torch.where(x > 0, x, torch.zeros_like(x))))
same("mean removed", lambda c: Do(lambda s, x: x - x.mean(1, keepdim=True)))
same("shuffled", lambda c: Do(shuffled), multiple=2)
step("halves", 2, 2)(lambda r, c: (Do(lambda s, x: torch.add(*x.chunk(2, 1))), c // 2))
step("gated", 2, 2)(lambda r, c: (Do(lambda s, x: F.glu(x, 1)), c // 2))
step("first half", 4, 2)(lambda r, c: (Do(lambda s, x: x[:, : x.size(1) // 2]), c // 2))
step("every second", 4, 2)(lambda r, c: (Do(lambda s, x: x[:, ::2] + x[:, 1::2]), c // 2))
step("pixels", 4, 4)(lambda r, c: (Do(lambda s, x: F.max_pool2d(F.pixel_shuffle(x, 2), 2)), c // 4))
step("groups", 2, 2)(lambda r, c: (block(c, 6, groups=2), 6))
step("dense")(
    lambda r, c: (
        Do(
            lambda s, x: torch.cat([x, s.body(x)], 1),
            body=nn.Sequential(nn.BatchNorm2d(c), conv(c, 2)),
        ),
        c + 2,
    )
)
PAIRS = {
    "add": lambda s, a, b: a + b,
    "gate": lambda s, a, b: a * b.mean((2, 3), keepdim=True).tanh(),
    "larger": lambda s, a, b: torch.maximum(a, b),
}  # of two maps of one width


class Program(nn.Module):
    """Reads a picture; each step reads one of the last three maps, or two of one width."""

    def __init__(self, steps: Sequence[str], seed: int):
        super().__init__()
        r, widths = random.Random(seed), [3]
        torch.manual_seed(seed)
        self.steps = []
        for name in steps:
            i = r.randrange(max(0, len(widths) - 3), len(widths))
            reads = [i]
            if name in PAIRS or name == "cat":
                alike = [k for k, w in enumerate(widths) if w == widths[i] or name == "cat"]
                reads.append(r.choice(alike))
                make = PAIRS.get(name, lambda s, a, b: torch.cat([a, b], 1))
                way, width = Do(make), widths[i] + (widths[reads[1]] if name == "cat" else 0)
            else:
                way, width = STEPS[name](r, widths[i])
            self.steps.append((name, way, reads))
            widths.append(width)
        self.layers = nn.ModuleDict({f"{k}": way for k, (_, way, _) in enumerate(self.steps)})
        self.norm, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 4)
        self.side = nn.Linear(widths[len(widths) // 2], 4)

    def forward(self, x: Tensor, *, scale: float = 1.0, extra: Tensor | None = None) -> Tensor:
        maps = [x if extra is None else x + extra]
        for k, (_, way, reads) in enumerate(self.steps):  # a plain list: their parent is another
            way = self.layers[f"{k}"] if k % 2 else way
            maps.append(way(*(maps[i] for i in reads)))
        last = self.fc(F.relu(self.norm(maps[-1])).mean((2, 3)))
        return last * scale + self.side(maps[len(maps) // 2].amax((2, 3)))


NAMES = [*STEPS, *PAIRS, "cat", *["block", "residual", "norm first"] * 3]
