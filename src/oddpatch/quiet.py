"""Lightning warnings and tips that do not apply to a module that learns nothing by gradient."""

import logging
import warnings

#: Each is about training by gradient, or about Lightning's own internals.
NOT_FOR_US = (
    r".*configure_optimizers` returned `None`.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*training_step` returned `None`.*",
    r".*does not have many workers.*",
    r".*The number of training batches.*smaller than the logging interval.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*No .* dataloader.*configured.*",
    r".*Total length of `(DataLoader|list)` across ranks is zero.*",  # a run without such images says so itself
    r".*Checkpoint directory .* exists and is not empty.*",  # a run that was killed goes on there
    r".*sync_dist=True.*",  # metrics bring the devices together themselves
)


def hush_lightning() -> None:
    """Leave Lightning's errors and real warnings, hide the rest."""
    for pattern in NOT_FOR_US:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
