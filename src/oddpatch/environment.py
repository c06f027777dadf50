"""What this machine says of itself: settings in `.env`, and the commit of the source that runs."""

import io
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from oddpatch.errors import ConfigError

#: What `.env` may set, as `.env.example` lists it: others, such as LD_PRELOAD, would run code in what we start.
VARIABLES = (
    "ODDPATCH_DATA_DIR", "ODDPATCH_CACHE_DIR", "TORCH_HOME", "HF_HOME", "HF_HUB_OFFLINE", "WANDB_API_KEY",
    "WANDB_MODE", "WANDB_ENTITY",
)  # fmt: skip

#: Libraries that decide the numbers.
LIBRARIES = ("torch", "torchvision", "lightning", "timm", "efficientnet-pytorch", "numpy", "scipy", "torchmetrics")


def checkout() -> Path | None:
    """The source checkout that this package runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / ".env.example").is_file() else None


def read_env() -> None:
    """Take over `.env` of the checkout; variables that are set already stand.

    The current folder is not looked into: it may be a download.

    Raises:
        ConfigError: the file cannot be read, or sets anything that `.env.example` does not list.
    """
    root = checkout()
    if root is None or not (root / ".env").is_file():
        return
    from dotenv import dotenv_values

    path = root / ".env"
    try:
        # Without a file's name dotenv would look for one; values are taken as they are written.
        values = dotenv_values(stream=io.StringIO(path.read_text(encoding="utf-8")), interpolate=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}): write it as .env.example is") from error
    unknown = sorted(values.keys() - set(VARIABLES))
    if unknown:
        raise ConfigError(
            f"{path} sets {unknown[0]}: it may set {', '.join(VARIABLES)}; set others in the shell (export NAME=VALUE)"
        )
    for name, value in values.items():
        if value is not None:
            os.environ.setdefault(name, value)


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of oddpatch, Python and libraries."""
    found = {"oddpatch": version("oddpatch"), "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the checkout that runs, with "+changes" if it was edited since; None where there is none."""
    root = checkout()
    if root is None or not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    # Neither the environment nor the settings of a user or a machine decide what git runs.
    quiet = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", f"safe.directory={root}")
    command = ["git", *(part for setting in quiet for part in ("-c", setting)), "-C", str(root), *arguments]
    clean = {"PATH": os.environ.get("PATH", os.defpath), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=clean).stdout.strip()
