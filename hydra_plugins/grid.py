"""Our sweeper; Hydra takes plugins from a package of this name only, and looks for it here."""

import functools
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


class Grid(BasicSweeper):
    """Every combination of what is swept, as Hydra's basic sweeper makes them.

    That one composes all jobs before the first, so that a wrong one is found early. Here each value
    is looked at once, and composed only if it chooses from a group: enough to find it.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        parser, seen, composed = OverridesParser.create(), set(), None
        chooses = functools.cache(self._chooses)
        for words in batch:
            new = parser.parse_overrides([word for word in words if word not in seen])
            seen |= {*words}
            if composed is None or any(chooses(override.key_or_group) for override in new):
                composed = self._composed(words)
                continue
            for override in new:
                if not override.is_add() and not override.is_force_add():
                    OmegaConf.update(composed, override.key_or_group, override.value())

    def _chooses(self, key: str) -> bool:
        """Whether it is a group, such as model."""
        return bool(self.hydra_context.config_loader.get_group_options(key))

    def _composed(self, words: Sequence[str]) -> DictConfig:
        from utils.cli import known  # this file is read at every start, also for what only asks

        config = self.hydra_context.config_loader.load_sweep_config(self.config, [*words])
        HydraConfig.instance().set_config(config)
        with read_write(config), open_dict(config):
            del config["hydra"]
        known.check(config)
        return config
