"""Fit on images of good parts, save, test, report.

python train.py                                     # PaDiM on rendered circuit boards
python train.py model=padim backbone=effnet_b4 data=pcb
python train.py data=mvtec data.root=/data/mvtec data.category=bottle
python train.py -m model=padim,patchcore data=mvtec data.category=all    # a sweep, see docs/sweeps.md
"""

import hydra
from omegaconf import DictConfig

from oddpatch.hydra_entry.composition import explain_overrides
from oddpatch.hydra_entry.endings import one_line_errors
from oddpatch.learning.launcher import on_every_device
from oddpatch.sweep.job import sweep_job


@explain_overrides
@hydra.main(version_base="1.3", config_path="configs", config_name="train")
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
    run.summary()
    return run.measured(cfg.objective)


if __name__ == "__main__":
    main()
