"""Figures for Prometheus, read from the watch whenever it asks: nothing is counted twice."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from oddpatch.watch.events import Verdict
from oddpatch.watch.serving.live import Live

#: Counts of sinks that go up and down.
LEVELS = ("waiting", "kept")


class Figures(Collector):
    """The figures of a watch.

    Args:
        live: of the watch.
    """

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        status = self._live.status()
        frames = CounterMetricFamily("oddpatch_frames", "Frames that arrived, by what became of them.", labels=["fate"])
        for verdict in Verdict:
            frames.add_metric([verdict], status.verdicts.get(verdict, 0))
        frames.add_metric(["dropped"], status.dropped)
        frames.add_metric(["skipped"], status.skipped)
        yield frames
        yield CounterMetricFamily("oddpatch_frames_arrived", "Frames that the source delivered.", status.arrived)
        yield GaugeMetricFamily("oddpatch_frames_waiting", "Frames being judged or next in turn.", status.waiting)
        yield CounterMetricFamily(
            "oddpatch_reconnects", "Times that the source was connected again.", status.reconnects
        )
        connected = status.connection == "connected"
        yield GaugeMetricFamily("oddpatch_connected", "1 while the source delivers frames.", connected)
        healthy = self._live.trouble(status) is None
        yield GaugeMetricFamily("oddpatch_healthy", "1 while /healthz answers 200.", healthy)
        yield _gauges(
            "oddpatch_drift", "1 once parts are unlike those of the calibration.", "of",
            {drift.stream: 1 for drift in status.drift},
        )  # fmt: skip
        if status.last_frame is not None:
            yield GaugeMetricFamily(
                "oddpatch_last_frame_timestamp_seconds", "When the last frame arrived.", status.last_frame
            )
        yield _gauges("oddpatch_frames_per_second", "Over the last minute.", "of", status.rates)
        yield _gauges(
            "oddpatch_delay_seconds", "From capture to decision.", "quantile",
            {f"0.{name.removeprefix('p')}": value for name, value in status.delays.items()},
        )  # fmt: skip
        thresholds = {str(verdict): value for verdict, value in self._live.thresholds.items()}
        yield _gauges("oddpatch_threshold", "Score above which a frame gets the verdict.", "verdict", thresholds)
        levels = GaugeMetricFamily("oddpatch_sink_level", "What a sink holds.", labels=["sink", "what"])
        counts = CounterMetricFamily("oddpatch_sink", "What a sink did.", labels=["sink", "what"])
        for sink in self._live.sinks:
            for what, count in sink.counts().items():
                (levels if what in LEVELS else counts).add_metric([sink.name, what], count)
        yield levels
        yield counts


def _gauges(name: str, documentation: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def exposition(live: Live) -> tuple[bytes, str]:
    """The figures as text, and its type; a registry of its own keeps those of other libraries out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(live))
    return generate_latest(registry), CONTENT_TYPE_LATEST
