"""A cluster that is not there, or has no machine large enough; what jobs do on one: tests/sweep/test_launchers.py."""

import threading

import pytest

from oddpatch import cluster
from oddpatch.errors import ConfigError

ray = pytest.importorskip("ray")


def test_an_address_without_a_cluster_is_one_line(monkeypatch):
    def fail(**settings):
        raise ConnectionError("\n  no GCS at 127.0.0.1:1\nmany lines more")

    monkeypatch.setattr(ray, "init", fail)
    told = r"no Ray cluster can be reached at 127\.0\.0\.1:1 \(ConnectionError: no GCS at 127\.0\.0\.1:1\): start one"
    with pytest.raises(ConfigError, match=told) as error, cluster.cluster("127.0.0.1:1", {}, "leave out --ray"):
        pass
    assert str(error.value).endswith("by `ray start --head`, or leave out --ray")


def test_a_job_larger_than_every_machine_is_refused(monkeypatch):
    monkeypatch.setattr(cluster, "machines", lambda: [{"CPU": 2.0}, {"CPU": 4.0}])
    with pytest.raises(ConfigError, match=r"which no machine of the Ray cluster has \(all together: .*\): lower cpus"):
        cluster.need_of(0, 5, "lower cpus")
    assert cluster.need_of(0, 4, "lower cpus").cpus == 4


def test_a_cluster_that_does_not_answer_has_ended(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(ray, "nodes", answered.wait)
    monkeypatch.setattr(cluster, "PATIENCE", 0.1)
    with pytest.raises(cluster.ClusterEndedError, match=r"does not answer, 0\.1 s long: start one"):
        cluster.machines()
    answered.set()
