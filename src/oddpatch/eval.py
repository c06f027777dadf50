"""`oddpatch eval`, and `python eval.py` in a checkout: test a finished run again; its folder is all that is needed."""

import hydra
from omegaconf import DictConfig

from oddpatch.hydra_entry.composition import CONFIGS, explain_overrides
from oddpatch.hydra_entry.endings import one_line_errors
from oddpatch.learning.launcher import on_every_device


@explain_overrides
@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="eval")
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
