"""Inspecting on the machines of a Ray cluster: the files are handed out in shards, the results come back in order."""

import base64
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

import torch

from oddpatch.cluster import CORES, Need, cluster, machines, need_of, ray
from oddpatch.errors import DataError, OddpatchError, ResourceError, in_one_line
from oddpatch.inference.detector import AnomalyDetector, SaveFn
from oddpatch.inference.outputs import to_record
from oddpatch.inference.sources import Frame

#: Batches of a shard, which is what is repeated where a worker is lost; fewer where each worker would get few of them.
BATCHES, SHARDS = 16, 4
#: What helps where workers have other code.
SAME = "install on all machines what is installed on this one, or predict without --ray"


def inspect(
    frames: Sequence[Frame],
    load: Callable[[], AnomalyDetector],
    address: str,
    batch_size: int,
    save: SaveFn | None = None,
    gpu: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """A record of each image, see `to_record`, in the order of the images.

    A shard whose worker is lost is run again, three times at most. A worker loads the model once, and has one GPU and
    its share of the cores, or up to 4 cores. The folder that is the current one here must be there on all machines.

    Args:
        frames: files, or errors that stand for them.
        load: makes the detector; it is pickled, and so is `save`.
        address: of the cluster, as `ray.init` takes it.
        batch_size: images scored at once; with as many cores, the scores are those of one process to the last bit.
        save: see `AnomalyDetector.stream`.
        gpu: whether a worker needs a GPU.

    Raises:
        ConfigError: there is no such cluster, or no machine with a GPU.
        ResourceError: a shard was lost too often.
        OddpatchError: whatever the detector raises on a worker.
    """
    import ray.data

    if not frames:
        return
    with cluster(address, {}, "give the address of one that runs (--ray)"):
        cores = min((machine["CPU"] for machine in machines() if machine.get("CPU")), default=1.0)
        need = need_of(int(gpu), "auto" if gpu else min(CORES, cores), "choose --device cpu, or add machines")
        workers = max(sum(_fitting(machine, need) for machine in machines()), 1)
        batches = -(-len(frames) // (batch_size * workers * SHARDS))
        size = batch_size * max(min(batches, BATCHES), 1)
        # As text: Arrow has no room for names that are no UTF-8, nor for records whose regions differ in shape.
        starts = range(0, len(frames), size)
        shards = [{"frames": json.dumps(list(map(_packed, frames[start : start + size])))} for start in starts]
        _set_up()
        work = ray.cloudpickle.dumps((load, save, str(Path.cwd()), batch_size, max(int(need.cpus), 1)))
        task = functools.partial(_inspect, work=base64.b64encode(work).decode())
        # Ray ends a worker that has used a GPU after one task unless max_calls says otherwise; it repeats a lost task
        # three times by itself.
        results = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
            task, num_cpus=need.cpus, num_gpus=need.gpus or None, max_calls=0
        )
        try:
            for shard in results.iter_rows():
                if shard["error"]:
                    raise ray.cloudpickle.loads(base64.b64decode(shard["error"]))
                yield from json.loads(shard["records"])
        except ray.exceptions.RayError as error:
            raise _lost(error) from error


def _inspect(shard: dict[str, Any], work: str) -> dict[str, Any]:
    """Runs on a worker. What it raises it returns: Ray Data wraps errors in text of its own, and loses their types."""
    records, error = [], None
    try:
        detector, save, batch_size, cores = _load(work)
        frames = [_unpacked(*frame) for frame in json.loads(shard["frames"])]
        with closing(detector.stream(frames, batch_size, save, cores, maps=False)) as found:
            records = [to_record(*one) for one in found]
    except OddpatchError as ours:
        error = ours
    except Exception as other:
        told = in_one_line(other)  # which has a remedy of its own
        told = told or " ".join(f"{type(other).__name__}: {other}: {SAME}".split())
        error = ResourceError(f"a Ray worker failed: {told}")
    packed = base64.b64encode(ray.cloudpickle.dumps(error)).decode() if error else ""
    return {"records": json.dumps(records), "error": packed}


def _packed(frame: Frame) -> tuple[str, str, str | None]:
    return frame.name, str(frame.output), str(frame.image) if isinstance(frame.image, DataError) else None


def _unpacked(name: str, output: str, error: str | None) -> Frame:
    return Frame(name, Path(name) if error is None else DataError(error), output=PurePath(output))


@functools.lru_cache(1)
def _load(work: str) -> tuple[AnomalyDetector, SaveFn | None, int, int]:
    load, save, folder, batch_size, cores = ray.cloudpickle.loads(base64.b64decode(work))
    os.chdir(folder)
    torch.set_num_threads(cores)
    return load(), save, batch_size, cores


def _fitting(machine: Any, need: Need) -> int:
    shares = [machine.get(kind, 0.0) // amount for kind, amount in (("GPU", need.gpus), ("CPU", need.cpus)) if amount]
    return int(min(shares))


def _set_up() -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # tracebacks of what is raised anyway


def _lost(error: Exception) -> ResourceError:
    """A worker was lost too often, or cannot import what it is to run: Ray has the reason in a line of its text."""
    lines = str(error).strip().splitlines()
    if reasons := [line for line in lines if re.match("(ImportError|ModuleNotFoundError|AttributeError): ", line)]:
        return ResourceError(f"a Ray worker failed: {reasons[-1]}: {SAME}")
    return ResourceError(f"the work of a Ray worker was lost ({type(error).__name__}: {lines[0]}): go on by --resume")
