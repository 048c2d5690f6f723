"""A pipeline as one trial of a W&B sweep: `wandb agent` gives it a single W&B run.

The agent's run takes the whole chain, when it is done: three runs of W&B can't share its id, and
stages that were finished before (a training under another ratio) would be missing from it.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from utils.runs.folder import read_result
from utils.runs.results import metrics
from utils.training.distributed import leads
from utils.training.tracking import NoLogger, WandB


def run(pipeline: Callable[[DictConfig], list[Path]], cfg: DictConfig) -> list[Path]:
    """`pipeline(cfg)`; under a sweep's agent, W&B hears of it in one run, by its end."""
    if "WANDB_SWEEP_ID" not in os.environ or not leads():
        return pipeline(cfg)
    quiet = copy.deepcopy(cfg)
    with open_dict(quiet):
        quiet.logger = {"_target_": f"{NoLogger.__module__}.{NoLogger.__qualname__}"}
    folders = pipeline(quiet)
    config = OmegaConf.to_container(cfg, resolve=True)
    report(instantiate(cfg.logger, _convert_="all"), folders, config)
    return folders


def report(logger: WandB | NoLogger, folders: list[Path], config: dict) -> None:
    """Each stage's epochs, counted through ("finetune/train/loss"), and the last stage's result."""
    results = [read_result(folder) for folder in folders]
    last = results[-1]
    if last["accuracy"]["val"] is None:
        print("warning: a sweep sees no accuracy/val without a validation split: data.val_size=N")
    logger.start(folders[-1], last["name"], last["row"], "trial", config)
    try:
        epoch = 0
        for folder, result in zip(folders, results):
            for row in metrics({"folder": folder}):
                epoch += 1
                named = {f"{result['stage']}/{key}": value for key, value in row.items()}
                logger.log({**named, "epoch": epoch}, {})
        # A sweep takes the best of all values that were logged, so only the last stage's is.
        logger.log({"accuracy/val": last["accuracy"]["val"]}, {})
        logger.finish(last)
    finally:
        logger.close()
