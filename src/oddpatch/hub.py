"""Runs on the Hugging Face Hub: tensors as safetensors, their description as JSON, and a model card; no code.

A model there is `model.safetensors`, `oddpatch.json` (what a checkpoint says beside its tensors, and the SHA-256 of the
other files), `metrics.json` and `README.md`. Names of folders of this machine stay here.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from oddpatch.checkpoint import read_checkpoint, write_checkpoint
from oddpatch.errors import CheckpointError, ConfigError, ResourceError
from oddpatch.factory import CHECKPOINT
from oddpatch.files import parse_json, sha256
from oddpatch.report.card import render_card
from oddpatch.report.runs import read_run
from oddpatch.results import METRICS

SCHEME = "hf://"
TENSORS, DESCRIPTION, CARD = "model.safetensors", "oddpatch.json", "README.md"


class Address(NamedTuple):
    """A model on the hub."""

    repo: str  # OWNER/NAME
    revision: str | None  # branch, tag or commit; None for the newest

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def parse_address(text: str) -> Address:
    """The model that OWNER/NAME or OWNER/NAME@REVISION names, with `hf://` before it or not.

    Raises:
        ConfigError: it names none.
    """
    repo, at, revision = text.removeprefix(SCHEME).partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")) or (at and not revision):
        raise ConfigError(
            f"{text!r} names no model of the hub: write {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION"
        )
    return Address(repo, revision or None)


def push(run: Path, address: Address, private: bool = False) -> str:
    """Upload a finished run; a model that is there gets a new commit.

    Returns:
        The address of that commit in a browser.

    Raises:
        ConfigError: `address` names a revision or cannot be written to, or huggingface_hub is not installed.
        CheckpointError: the run cannot be read.
        ResourceError: the hub cannot be reached.
    """
    if address.revision is not None:
        raise ConfigError(f"{address}: a commit is added to the newest revision: leave out @{address.revision}")
    content, finished = read_checkpoint(run / CHECKPOINT), read_run(run)
    with tempfile.TemporaryDirectory(prefix="oddpatch-hub-") as scratch, _asking(address) as api:
        from safetensors.torch import save_file

        folder = Path(scratch)
        # Copies, as tensors may share memory, which the format has no way to say.
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in content["state_dict"].items()}, folder / TENSORS
        )
        _write_json(folder / METRICS, _without_folders(finished.metrics))
        hashes = {name: sha256(folder / name) for name in (TENSORS, METRICS)}
        about = _without_folders(content["oddpatch"])
        about["config"]["data"]["root"] = "."
        _write_json(folder / DESCRIPTION, {"oddpatch": about, "sha256": hashes})
        (folder / CARD).write_text(render_card(finished, address.repo), encoding="utf-8")
        api.create_repo(address.repo, private=private, exist_ok=True)
        names = finished.names
        message = f"{names['model']} on {names['backbone']}, {names['category']}"
        return str(api.upload_folder(repo_id=address.repo, folder_path=folder, commit_message=message).commit_url)


def fetch(address: Address, folder: Path) -> None:
    """Make a run's folder of a model on the hub, or of the copy that an earlier download has left on this machine.

    Raises:
        ConfigError: huggingface_hub is not installed.
        CheckpointError: there is no such model or revision, or its files are not those that were uploaded.
        ResourceError: the hub cannot be reached.
    """
    with _asking(address) as api:
        found = Path(
            api.snapshot_download(
                address.repo, revision=address.revision, allow_patterns=[TENSORS, DESCRIPTION, METRICS]
            )
        )
    try:
        described = parse_json((found / DESCRIPTION).read_text(encoding="utf-8"))
        about, hashes = described["oddpatch"], described["sha256"]
        wanted = {name: hashes[name] for name in (TENSORS, METRICS)}
    except FileNotFoundError:
        raise CheckpointError(f"{address} holds no {DESCRIPTION}: give a model that push_to_hub has uploaded") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{address}: {DESCRIPTION} cannot be read ({error!r}): upload the run again") from error
    for name, digest in wanted.items():
        if not (found / name).is_file() or sha256(found / name) != digest:
            raise CheckpointError(
                f"{address}: {name} is not the file that was uploaded (its SHA-256 differs): give another revision, or "
                "upload the run again"
            )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(found / TENSORS)
    except SafetensorError as error:
        raise CheckpointError(f"{address}: {TENSORS} cannot be read ({error}): upload the run again") from error
    write_checkpoint({"oddpatch": about, "state_dict": tensors}, folder / CHECKPOINT)
    (folder / METRICS).write_bytes((found / METRICS).read_bytes())


@contextmanager
def _asking(address: Address) -> Iterator[Any]:
    """The hub's interface; whatever goes wrong there is one line."""
    try:
        from huggingface_hub import HfApi, errors
    except ImportError as error:
        raise ConfigError(f"{address} needs huggingface_hub: pip install 'oddpatch[hub]'") from error
    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{address}: there is no revision {address.revision!r}: give a branch, a tag or a commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{address}: there is no such model, or it is private: correct the name, or log in by `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{address}: {str(error).splitlines()[0]}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "log in by `hf auth login` with a token that may write there" if status < 500 else "try again later"
        raise ResourceError(f"{address}: the hub answers with error {status}: {remedy}") from error
    except Exception as error:
        if not _is_of_network(error, errors):
            raise
        raise ResourceError(
            f"{address}: the hub cannot be reached, and no copy is on this machine: connect it, unset HF_HUB_OFFLINE, "
            "or set HF_ENDPOINT to a mirror"
        ) from error


def _is_of_network(error: BaseException | None, errors: Any) -> bool:
    """Whether an error, or what it was raised from, is that there is no connection."""
    if error is None or isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return error is not None
    # The library has changed what it talks HTTP with, and lets its errors through.
    of_client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
    return of_client or _is_of_network(error.__cause__, errors)


def _without_folders(value: Any) -> Any:
    """Plain values with the name alone of every file that is given by a full path."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
