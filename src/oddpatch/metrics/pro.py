"""Per-region overlap (PRO): how much of each defect region is found, every region weighing the same.

Bergmann et al., "The MVTec Anomaly Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised Anomaly
Detection", IJCV 2021.
"""

from oddpatch.metrics.arrays import ArrayLike
from oddpatch.metrics.curves import Points
from oddpatch.metrics.pixel import rank_pixels


def au_pro(maps: ArrayLike, masks: ArrayLike, fpr_limit: float = 0.3) -> float:
    """Area under the PRO curve up to `fpr_limit`, divided by it; exact.

    PRO at a threshold is the mean over the 8-connected defect regions of all images of the part of the region found.
    The false-positive rate is that of all normal pixels of all images. Between points of the curve, the limit
    included, it is interpolated linearly. Arguments and errors as in `pixel_metrics`, which gives several limits in
    the time of one.
    """
    return rank_pixels(maps, masks).au_pro(fpr_limit)


def pro_curve(maps: ArrayLike, masks: ArrayLike, max_points: int = 2000) -> tuple[Points, Points]:
    """(false-positive rate, PRO) from (0, 0) to (1, 1), thinned for plotting (see `curves.thin`).

    Arguments and errors as in `rank_pixels`, which gives the other curves and the metrics from the same sort.
    """
    return rank_pixels(maps, masks).pro_curve(max_points)
