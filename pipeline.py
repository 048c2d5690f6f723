"""The three stages in a row: train, prune, finetune. Each is cached in its own run folder.

    python pipeline.py                                          # handwritten digits
    python pipeline.py -m ratio=0.3,0.5,0.7 seed=0,1,2          # 3 trainings, 9 cuts

The unit of every table and sweep: what is finished costs nothing, what was interrupted goes on.
"""

from pathlib import Path

from utils.cli import script


def pipeline(cfg) -> list[Path]:
    """Run what is missing; return the folders of the stages."""
    from omegaconf import OmegaConf, open_dict

    from finetune import finetune
    from prune import prune
    from train import train

    def with_(**changes):
        new = OmegaConf.merge(cfg, {})
        with open_dict(new):
            for key, value in changes.items():
                new[key] = value
        return new

    own = cfg.model._target_.rpartition(".")[0]  # named on this command line, so it is trusted
    folders = [train(cfg)]
    for stage, changes in ((prune, {}), (finetune, cfg.finetune)):
        if cfg.dry_run and not (folders[-1] / "result.json").exists():
            print(f"{stage.__name__}: would follow")
            continue
        folders.append(stage(with_(**changes, ckpt=str(folders[-1]), allow=[*cfg.allow, own])))
    return folders


@script("pipeline")
def main(cfg) -> None:
    pipeline(cfg)


if __name__ == "__main__":
    main()
