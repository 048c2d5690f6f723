"""The layers that have channels of their own, and what they say about their sizes."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

SCORED = (_ConvNd, nn.Linear, _BatchNorm)  # the layers that have channels of their own


def own_forward(module: nn.Module) -> bool:
    """Whether a subclass of a layer with channels computes something else than torch's layer."""
    return isinstance(module, SCORED) and any(
        not kind.__module__.startswith("torch.nn.")
        and ({"forward", "_conv_forward"} & vars(kind).keys())
        for kind in type(module).__mro__
    )


def agree_at(model: nn.Module, path: str) -> None:
    """`agree` with the module whose tensors are at `path`; its weight may be computed from them."""
    agree(model.get_submodule(path.partition(".parametrizations.")[0]))


def agree(module: nn.Module) -> None:
    """Set a module's sizes from its tensors: subclasses with a forward of their own read them."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.RNNBase):
        module.input_size = module.weight_ih_l0.shape[1]
    elif "num_features" in vars(module):
        module.num_features = len(module.running_mean if weight is None else weight)
    elif not isinstance(weight, Tensor):
        return
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        module.num_channels, module.num_groups = len(weight), len(weight) // per_group
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, _ConvTransposeNd):
        per_group = module.in_channels // module.groups
        module.in_channels = len(weight)
        module.groups = module.groups if module.groups == 1 else len(weight) // per_group
        module.out_channels = weight.shape[1] * module.groups
    elif vars(module).keys() >= {"in_channels", "out_channels", "groups"}:  # not only torch's own
        per_group = module.out_channels // module.groups
        module.out_channels = len(weight)
        module.groups = module.groups if module.groups == 1 else len(weight) // per_group
        module.in_channels = weight.shape[1] * module.groups
