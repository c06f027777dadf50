"""Where pretrained weights come from: an installed package, the local caches, a download; in that order.

Nothing is executed when weights are read: files are safetensors, or are loaded with `weights_only=True`.
"""

import importlib.util
import os
import pickle
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from oddpatch.errors import WeightsError
from oddpatch.files import sha256

#: Seconds within which a host must answer before we say that there is no network.
CONNECT_SECONDS = 4.0
#: Wrappers that training frameworks put around a state dict, and prefixes they put before its keys.
WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "model_ema")
PREFIXES = ("module.", "model.", "backbone.", "encoder.")


@dataclass(frozen=True)
class WeightsSource:
    """The places where one network's pretrained weights may be.

    Args:
        name: the network, for messages.
        package: importable package that carries the file under `models/`.
        files: names the file has in `$TORCH_HOME/hub/checkpoints`.
        url: where to download it; its last part is looked for in that folder too.
        hf_repo: repository on the Hugging Face hub, looked for in its local cache first.
    """

    name: str
    package: str | None = None
    files: tuple[str, ...] = ()
    url: str | None = None
    hf_repo: str | None = None


def find_weights(source: WeightsSource) -> Path:
    """The file with the pretrained weights of `source`, downloaded if it is nowhere on this machine.

    Raises:
        WeightsError: names the file, every place looked in, and two ways out.
    """
    looked_in: list[str] = []
    for find in (_in_package, _in_torch_cache, _in_hf_cache):
        found = find(source, looked_in)
        if found is not None:
            check_hash(found)
            return found
    return _download(source, looked_in)


def torch_cache() -> Path:
    """The folder where torch.hub keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _in_package(source: WeightsSource, looked_in: list[str]) -> Path | None:
    if source.package is None:
        return None
    looked_in.append(f"package {source.package}")
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(next(iter(spec.submodule_search_locations)), "models").glob("*.pth"))
    return files[0] if files else None


def _file_names(source: WeightsSource) -> list[str]:
    from_url = [source.url.rsplit("/", 1)[-1]] if source.url else []
    from_hub = [f"{source.hf_repo.rsplit('/', 1)[-1]}.safetensors"] if source.hf_repo else []
    return list(dict.fromkeys([*source.files, *from_url, *from_hub]))


def _in_torch_cache(source: WeightsSource, looked_in: list[str]) -> Path | None:
    for name in _file_names(source):
        path = torch_cache() / name
        looked_in.append(str(path))
        if path.is_file():
            return path
    return None


def _in_hf_cache(source: WeightsSource, looked_in: list[str]) -> Path | None:
    if source.hf_repo is None:
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    looked_in.append(f"{constants.HF_HUB_CACHE} ({source.hf_repo})")
    for name in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(source.hf_repo, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _download(source: WeightsSource, looked_in: list[str]) -> Path:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    if not offline and source.url and not source.url.startswith("hf://") and answers(source.url):
        name = source.url.rsplit("/", 1)[-1]
        target = torch_cache() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written to a temporary name and moved into place; the digits in the name are checked against the content.
        with _downloading(source.url):
            torch.hub.download_url_to_file(source.url, str(target), hash_prefix=_hash_in(name))
        return target
    if not offline and source.hf_repo and answers("https://huggingface.co"):
        from huggingface_hub import hf_hub_download

        with _downloading(f"https://huggingface.co/{source.hf_repo}"):
            return Path(hf_hub_download(source.hf_repo, "model.safetensors"))
    wanted = " or ".join(_file_names(source))
    state = "downloads are off (HF_HUB_OFFLINE)" if offline else "no network answers"
    raise WeightsError(
        f"no pretrained weights for {source.name}: {wanted} is in none of [{', '.join(looked_in)}] and {state}: "
        f"put the file into {torch_cache()} (or give its path as backbone.weights=FILE), "
        "or use backbone=effnet_lite0, which needs no download"
    )


@contextmanager
def _downloading(url: str) -> Iterator[None]:
    """Make one line of whatever ends a download: torch and the Hugging Face Hub raise errors of many types."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{url} could not be downloaded ({reason}): try again, put the file into {torch_cache()}, "
            "or use backbone=effnet_lite0, which needs no download"
        ) from error


def answers(url: str) -> bool:
    """Whether the host of `url` answers in time; a thread, because looking up a name cannot be given a time limit."""
    answered: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
                answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)  # it answered, if only to refuse a HEAD
        except OSError:
            answered.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answered == [True]


def _hash_in(name: str) -> str | None:
    match = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    return match.group(1) if match else None


def check_hash(path: Path) -> None:
    """Raise a `WeightsError` if the file's name carries the start of a SHA-256 that its content does not have."""
    expected = _hash_in(path.name)
    if expected is None:
        return
    actual = sha256(path)
    if not actual.startswith(expected):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 starts with {actual[: len(expected)]}, its name says {expected}: "
            "delete it and fetch it again"
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a weights file by name, without the wrappers that training frameworks add.

    Raises:
        WeightsError: the file is missing, damaged, or holds more than plain tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give the path of a weights file, or 'pretrained' or 'random'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise WeightsError(
            f"{path} is not a file of plain tensors ({type(error).__name__}): save a state dict with torch.save or "
            "safetensors; files that hold code are refused"
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise WeightsError(f"{path} is not a valid safetensors file: {error}") from error
    return _unwrap(loaded, path)


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"{path} holds no state dict (a mapping of names to tensors): save model.state_dict()")
    tensors = {str(key): value for key, value in loaded.items()}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {key} holds values that are no finite numbers: fetch or export it again")
    return tensors


def load_weights(
    network: nn.Module,
    weights: str,
    source: WeightsSource,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> str:
    """Load weights into a network and say where they came from: a file's name, or "random".

    Args:
        network: as it is built, with random weights.
        weights: "pretrained", "random", or the path of a state dict.
        source: where the pretrained ones are.
        adapt: what makes the names of the file those of the network.

    Raises:
        WeightsError: weights not found, or they do not fit.
    """
    if weights == "random":
        return "random"
    path = find_weights(source) if weights == "pretrained" else Path(weights)
    given = read_state_dict(path)
    given = adapt(given) if adapt else given
    told = mismatch(network.state_dict(), given, source.name)
    if told:
        raise WeightsError(f"{path}: {told}: use weights of this very architecture")
    network.load_state_dict(given)
    return path.name


def mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> str | None:
    """One line on how `given` differs from the parameters `expected` by network `name`; None if it does not.

    The first few missing, unexpected and mis-shaped keys are listed.
    """
    shared = expected.keys() & given.keys()
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in shared and given[key].shape != expected[key].shape
    ]
    problems = [
        _first_few("missing", [key for key in expected if key not in shared]),
        _first_few("unexpected", [key for key in given if key not in shared]),
        _first_few("of another shape", shapes),
    ]
    told = "; ".join(problem for problem in problems if problem)
    return f"the weights do not fit {name}: {told}" if told else None


def _first_few(what: str, keys: Iterable[str], few: int = 3) -> str:
    keys = list(keys)
    if not keys:
        return ""
    more = f" and {len(keys) - few} more" if len(keys) > few else ""
    return f"{len(keys)} {what} ({', '.join(keys[:few])}{more})"
