"""`oddpatch train`, and `python train.py` in a checkout: fit on images of good parts, save, test, report."""

import hydra
from omegaconf import DictConfig

from oddpatch.hydra_entry.composition import CONFIGS, explain_overrides
from oddpatch.hydra_entry.endings import one_line_errors
from oddpatch.learning.launcher import on_every_device
from oddpatch.sweep.job import sweep_job


@explain_overrides
@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
@one_line_errors
@sweep_job
@on_every_device
def main(cfg: DictConfig) -> float | None:
    """Run what the config describes; the headline metric is returned, for sweeps that search."""
    from oddpatch.pipeline import build

    run = build(cfg)
    run.fit()
    run.calibrate()
    run.save()
    run.test()
    run.summary(guide=True)
    return run.measured(cfg.objective)


if __name__ == "__main__":
    main()
