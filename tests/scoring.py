"""A model for tests of what lies around it: its score is the mean of the green channel, times 100."""

import threading
import time
from dataclasses import replace

import numpy as np

from oddpatch.data.decoding import read_planes, to_rgb_planes
from oddpatch.errors import DataError
from oddpatch.inference.detector import AnomalyDetector
from oddpatch.inference.scorer import Prepared, Scored
from oddpatch.metrics.good_scores import GoodScores


class GreenScorer:
    """Takes `seconds` for an image, waits for `free`, and cannot inspect images wider than `widest`.

    With `ratios` by score it is of two products, of which no good image has a ratio above 0.1.
    """

    def __init__(self, seconds=0.0, good=range(100), target_fpr=0.01, widest=10**6, ratios=None):
        scores = np.array(good, np.float64) / 2
        absent = None if len(scores) else "it was fitted with calibration=none"
        self.calibration = GoodScores(scores, np.array([]), np.nan, target_fpr, absent)
        if ratios is not None:
            good_ratios = np.linspace(0, 0.1, 100)
            self.calibration = replace(self.calibration, products=("nut", "bolt"), product_ratios=good_ratios)
        self.ratios = ratios or {}
        self.settings = {"roi": None, "fit": None}
        self.seconds, self.widest, self.free = seconds, widest, threading.Event()
        self.free.set()

    def prepare(self, image, max_pixels=None):
        planes = to_rgb_planes(image) if isinstance(image, np.ndarray) else read_planes(image)
        if planes.shape[2] > self.widest:
            raise DataError("too wide")
        return Prepared(planes, planes, None, 1.0)

    def score(self, images):
        time.sleep(self.seconds)
        self.free.wait(60)
        scores = [100 * float(to_unit(image.pixels)[1].mean()) for image in images]
        return [Scored(score, None, ratio=self.ratios.get(round(score), 0.0)) for score in scores]

    def lay_out(self, anomaly_map, image):
        raise NotImplementedError


def to_unit(planes):
    return planes / np.float32(255) if planes.dtype == np.uint8 else planes


def green_detector(threshold="auto", **settings):
    return AnomalyDetector(GreenScorer(**settings), threshold)
