"""What a sweeper that searches, such as optuna, is told about each job."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

NO_SPLIT = "a search chooses on the validation split, never on the test set: add data.val_size=..."

NO_DRY_RUN = "a search has to see results: leave out dry_run=true, or the sweeper"


def is_on() -> bool:
    """Whether this job's sweeper wants to make something large or small."""
    return HydraConfig.initialized() and "direction" in HydraConfig.get().sweeper


def check(cfg: DictConfig) -> None:
    """Before anything is trained.

    Raises:
        ValueError: there is nothing to choose on, or nothing to be told.
    """
    from hydra.utils import instantiate

    from utils.cli import configured
    from utils.data.load import load_data

    if cfg.dry_run:
        raise ValueError(NO_DRY_RUN)
    if cfg.data is not None:  # else it is the checkpoint's, and looked at in the end
        data = load_data(configured.plain(cfg.data), instantiate(cfg.hardware).device)
        if not len(data.val):
            raise ValueError(NO_SPLIT)


def objective(folder: Path) -> float | tuple[float, float]:
    """Accuracy on the validation split of a finished run; and its MACs, for two directions."""
    from utils.runs.folder import read_result

    result = read_result(folder)
    accuracy = result["accuracy"]["val"]
    if accuracy is None:
        raise ValueError(NO_SPLIT)
    alone = isinstance(HydraConfig.get().sweeper.direction, str)
    return accuracy if alone else (accuracy, float(result["macs"]))
