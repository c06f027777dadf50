"""Fit on images of good parts, save, test, report.

python train.py                                     # PaDiM on rendered circuit boards
python train.py model=padim backbone=effnet_b4 data=pcb
python train.py data=mvtec data.root=/data/mvtec data.category=bottle
"""

import hydra
from dotenv import load_dotenv
from omegaconf import DictConfig

from oddpatch.errors import one_line_errors

load_dotenv(".env")  # variables that are set already stand


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> float | None:
    """Run what the config describes; the headline metric is returned, for sweeps that search."""
    from oddpatch.pipeline import build

    run = build(cfg)
    run.fit()
    run.calibrate()
    run.save()
    run.test()
    run.summary()
    return run.module.results.get(cfg.objective)


if __name__ == "__main__":
    main()
