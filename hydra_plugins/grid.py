"""Our sweeper; Hydra takes plugins from a package of this name only, and looks for it here."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write


class Grid(BasicSweeper):
    """Every combination of what is swept, as Hydra's basic sweeper makes them.

    That one composes all jobs before the first, so that a wrong one is found early. Here each value
    is looked at once: enough to find it, and the sum of the lists' lengths, not their product.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        from utils.cli import known  # this file is read at every start, also for what only asks

        seen: set[str] = set()
        for words in batch:
            if not {*words} <= seen:
                seen |= {*words}
                config = self.hydra_context.config_loader.load_sweep_config(self.config, [*words])
                HydraConfig.instance().set_config(config)
                with read_write(config), open_dict(config):
                    del config["hydra"]
                known.check(config)
