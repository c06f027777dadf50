"""Errors a user can mend. Each message is one line: the file or value, what is wrong with it, and the remedy."""

import errno
import os
from concurrent.futures import BrokenExecutor

#: Exit code that a shell reports of a program that Ctrl-C has ended.
INTERRUPTED = 130

#: What can be done where the system refuses to write.
REMEDIES = {
    errno.ENOSPC: "free disk space, or choose another folder",
    errno.EDQUOT: "free disk space, or choose another folder",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another folder",
    errno.EROFS: "choose another folder",
    errno.EACCES: "give access to it, or choose another folder",
    errno.EPERM: "give access to it, or choose another folder",
    errno.ENOTDIR: "choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n), or lower data.num_workers",
    errno.EIO: "see to the disk",
    errno.EBADF: "it is closed, send it to a file or to /dev/null",
}

#: The extra that a package comes with, by the name that it is imported by.
EXTRAS = {
    "optuna": "sweep", "ray": "sweep", "submitit": "sweep", "wandb": "wandb", "openvino": "openvino", "pyod": "outlier",
    "pyarrow": "parquet", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "av": "watch",
    "paho": "watch", "prometheus_client": "watch", "starlette": "watch", "uvicorn": "watch", "watchfiles": "watch",
    "streamlit": "demo", "albumentations": "augment",
}  # fmt: skip
#: Modules that only training needs: a machine that inspects parts may leave them out, see docs/install.md.
TRAINING = ("dotenv", "hydra", "lightning", "omegaconf", "torchmetrics")


class OddpatchError(Exception):
    """Base of every error that is the user's to mend; the command line prints it without a traceback."""


class ConfigError(OddpatchError, ValueError):
    """A setting has a value that cannot work."""


class DataError(OddpatchError, ValueError):
    """A dataset, image or mask cannot be used as it is."""


class WeightsError(OddpatchError, OSError):
    """Pretrained weights could not be found, or do not fit the network."""


class CheckpointError(OddpatchError, ValueError):
    """A run folder or checkpoint cannot be loaded."""


class ParityError(OddpatchError, ValueError):
    """An exported model gives other numbers than the run that it was made from."""


class NotFittedError(OddpatchError, RuntimeError):
    """A detector was asked to score before it was fitted."""


class ResourceError(OddpatchError, RuntimeError):
    """The machine lacks memory or disk for what the settings ask."""


class NameTooLongError(ResourceError):
    """A file's name is longer than the file system takes."""


def installing(module: str) -> str:
    """The command that installs a module which oddpatch can do without; empty for any other."""
    package = module.partition(".")[0]
    if package in TRAINING:
        return "pip install oddpatch"
    return f"pip install 'oddpatch[{EXTRAS[package]}]'" if package in EXTRAS else ""


def in_one_line(error: BaseException) -> str | None:
    """The line to print for an error that the user can fix, whoever raised it; None for any other."""
    if isinstance(error, OddpatchError):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if type(error).__module__.startswith("omegaconf."):  # a setting refers to one that there is not, or is not set
        key = str(getattr(error, "full_key", None) or "")
        hint = ": is ${ in the name of the folder to write to? set hydra.run.dir to another" if "hydra." in key else ""
        return f"{key}: {first}{hint}" if key else first
    if isinstance(error, ModuleNotFoundError) and (remedy := installing(str(error.name))):
        return f"{error.name} is not installed: {remedy}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's
        return f"trainer: {' '.join(str(error).split())}"
    if isinstance(error, OSError):
        return _of_the_system(error)
    if (isinstance(error, RuntimeError) and first.startswith("DataLoader worker")) or isinstance(error, BrokenExecutor):
        return (
            f"a process that prepares images was killed ({first.rstrip('. ')}): lower data.num_workers or "
            "data.batch_size, or give more memory (to a container also shared memory, by --shm-size=1g)"
        )
    return None


def _of_the_system(error: OSError) -> str | None:
    """The file, the system's reason and a remedy, where the disk or its owner is in the way."""
    if error.errno not in REMEDIES:
        return None
    name = "the output" if error.filename is None else os.fsdecode(error.filename)
    return f"{name}: {os.strerror(error.errno)}: {REMEDIES[error.errno]}"
