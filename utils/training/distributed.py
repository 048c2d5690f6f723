"""One training over several processes: `torchrun --nproc-per-node=N train.py ...`.

Each process takes its part of every batch, and DistributedDataParallel averages the gradients, so
that the recipe stays what it is. Process 0 leads: it alone prints, evaluates, saves and logs. In a
process that torchrun didn't start, nothing here does anything.
"""

import atexit
import os
import sys
from datetime import timedelta
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and --help must not wait for it
    from torch import Tensor, nn

# A dead process is torchrun's business; a living one may wait long for a run of somebody else.
PATIENCE = timedelta(days=30)


def count() -> int:
    """How many processes share this training."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    return int(os.environ["RANK"]) if count() > 1 else 0


def leads() -> bool:
    return rank() == 0


def hush() -> None:
    """Nobody but the leader prints. To be called before torch is loaded: no advice from it, too."""
    if count() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not leads():
        # For as long as the process lives.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def join(device: str) -> str:
    """Meet the other processes; which device is this one's (a GPU for each, or the CPU for all).

    Raises:
        ValueError: a certain GPU was asked for, or there are too few.
    """
    if count() == 1:
        return device
    import torch
    import torch.distributed as dist

    if current_process().name != "MainProcess":
        raise ValueError("torchrun starts one training: leave out hydra/launcher=...")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"torchrun gives each process a device: device=cpu or cuda; got {device}")
    gpus = torch.cuda.device_count()
    if device == "cuda" or (device == "auto" and gpus):
        local = int(os.environ["LOCAL_RANK"])
        if local >= gpus:
            raise ValueError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes for {gpus} GPUs: "
                f"use --nproc-per-node={max(1, gpus)}, or device=cpu"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return device if ":" in device else "cpu"


def own_seed(*parts: int | float | str) -> int:
    """`mix(*parts)`; another one in each further process, which sees other images."""
    from utils.data.seeding import mix  # its room imports torch, and --help must not wait for it

    return mix(*parts, *([rank()] if rank() else []))


def wrap(model: "nn.Module", sync_batchnorm: bool) -> "nn.Module":
    """The network as the training step calls it: backward leaves the mean of all gradients.

    All start from the leader's weights. BatchNorm normalises each process's part by itself, and its
    running statistics are the leader's; with `sync_batchnorm` it takes the whole batch for both.
    """
    if count() == 1:
        return model
    from torch import nn

    if sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # A network may have layers it doesn't use; and with this, sums have the same order in a run
    # that was resumed (otherwise DDP regroups the gradients after its first step).
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def bare(model: "nn.Module") -> "nn.Module":
    """The network that `wrap` was given."""
    return model.module if type(model).__name__ == "DistributedDataParallel" else model


def part(images: int) -> slice:
    """Which images of a batch are this process's; all of them where there are too few to share
    (BatchNorm needs two)."""
    if copies(images) > 1:
        return slice(images)
    return slice(images * rank() // count(), images * (rank() + 1) // count())


def copies(images: int) -> int:
    """How many processes compute each image of a batch."""
    return count() if images < 2 * count() else 1


def share(images: int, own: int) -> float:
    """The weight of this process's mean loss: the mean over processes is the mean over images."""
    return own * count() / (images * copies(images))


def total(sums: "Tensor") -> "Tensor":
    """The sum over the processes, in place."""
    if count() > 1:
        import torch.distributed as dist

        dist.all_reduce(sums)
    return sums


def anyone(wish: bool) -> bool:
    """Whether one of the processes wishes so. On the CPU: nobody waits for a GPU."""
    import torch

    return bool(total(torch.tensor(int(wish)))) if count() > 1 else wish


def from_leader(value: Any = None) -> Any:
    """What the leader gave; all come here at the same time."""
    if count() > 1:
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, device="cpu")
        (value,) = values
    return value


def agree(name: str) -> None:
    """
    Raises:
        ValueError: the processes are not about to compute the same.
    """
    if (leaders := from_leader(name)) != name:
        raise ValueError(
            f"process {rank()} would compute {name}, process 0 {leaders}: give all of them the "
            f"same command, code, data and kind of machine"
        )


def is_first_to_end() -> bool:
    """Whether this process may say why: the others fail of the same, or because this one did."""
    if count() == 1:
        return True
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:  # on a busy machine torchrun may take many seconds to answer
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
        return store.add(f"said {os.environ['TORCHELASTIC_RESTART_COUNT']}", 1) == 1
    except RuntimeError:  # nobody is there any more to ask: better said twice than never
        return True
