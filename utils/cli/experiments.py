"""The experiments of conf/experiment/, as `pipeline.py` would compose them."""

from contextlib import nullcontext
from typing import Any

from utils.cli.configured import tuning
from utils.cli.script import CONF

TWINS = CONF / "twin"


def composed(experiment: str, twin: str | None = None) -> dict[str, Any]:
    """The whole config of `python pipeline.py experiment=NAME [twin=NAME]`, as plain Python."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    words = [f"experiment={experiment}", *([f"twin={twin}"] if twin else [])]
    inside = GlobalHydra.instance().is_initialized()  # a script's own Hydra, or none
    with nullcontext() if inside else initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("pipeline", words), resolve=True)
    return {**config, "finetune": tuning(config)}
