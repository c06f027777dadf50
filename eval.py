"""Test a finished run again; nothing is needed but its folder.

python eval.py run=outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000
python eval.py run=FOLDER +data.root=/data/mvtec    # images that have moved since
"""

import hydra
from omegaconf import DictConfig

from oddpatch.hydra_entry.composition import explain_overrides
from oddpatch.hydra_entry.endings import one_line_errors
from oddpatch.learning.launcher import on_every_device


@explain_overrides
@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
@one_line_errors
@on_every_device
def main(cfg: DictConfig) -> float | None:
    """Score the run's test images with its fitted model, and write the results into a folder of their own."""
    from oddpatch.pipeline import rebuild

    run = rebuild(cfg)
    run.test()
    run.summary()
    return run.measured(cfg.objective)


if __name__ == "__main__":
    main()
