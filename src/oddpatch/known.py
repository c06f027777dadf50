"""Objects that a file describes: our own classes, plain values, and nothing else.

Hydra calls whatever a config names, which is right for what a user composes, and would let a checkpoint run any code.
What comes out of a file is read here first, all of it. A class must be one of ours, or an outlier detector of PyOD, of
a kind that belongs at its place: of the full name PACKAGE.MODULE.CLASS, where the package is that kind's, the module is
one of its files, and that module itself defines the class, as a concrete subclass of the kind's base. Of all that a
file names, only such modules are imported. Everything else must be a plain value. A user's own class or function is
built only if the user names its package. docs/security.md says what that promises.
"""

import importlib
import importlib.util
import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from oddpatch.errors import CheckpointError, ConfigError, OddpatchError

log = logging.getLogger(__name__)

Kind = Literal["backbone", "model", "selector", "embedding", "outlier", "calibration", "data"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DATA_MODULES = ("oddpatch.data.datamodule.MVTecDataModule", "oddpatch.data.few.FewImages")

#: What each kind must be an instance of; its package is that of this base.
BASES: dict[Kind, str] = {
    "backbone": "oddpatch.backbones.base.Backbone",
    "model": "oddpatch.models.base.Detector",
    "selector": "oddpatch.models.selectors.Selector",
    "embedding": "oddpatch.models.embeddings.Embedding",
    "outlier": "pyod.models.base.BaseDetector",
    "calibration": "oddpatch.models.calibration.Calibration",
    "data": "oddpatch.data.datamodule.MVTecDataModule",
}
#: What people call it.
CALLED: dict[Kind, str] = {
    "backbone": "backbone", "model": "detector", "selector": "selector", "embedding": "embedding",
    "outlier": "outlier detector",
    "calibration": "calibration", "data": "data module",
}  # fmt: skip
#: Modules of PyOD that fetch networks, or read files that their input names: nothing of them is built for a file.
FETCHING = ("pyod.models.embedding", "pyod.models.audio_ae")


#: Deeper or larger than any config: containers that hold themselves, or each other many times, would never end.
MAX_DEPTH, MAX_VALUES = 16, 20_000
#: Names and paths that a user gave: a folder may be called `${x}`. They stay texts, as nothing here interpolates.
_NAMED = re.compile(r"(^|\.)(data\.(root|category(\[\d+\])?|split|roi|align|validation)|run\.category)$")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Spec:
    """An object that a file describes and that may be built."""

    target: str
    kind: Kind | None  # None: an argument of a trusted class, of which nothing is known
    arguments: dict[str, Any]  # plain values, and in their places further specs
    deferred: bool  # whether it stands for what makes the object, to be called with further arguments
    source: object  # the file, for messages
    trust: tuple[str, ...]  # the packages of which it is one's; empty for a known class

    def make(self, **more: Any) -> Any:
        """The object, with further arguments; those override the file's.

        Raises:
            OddpatchError: as the constructor raises it, or a `CheckpointError` for arguments it cannot work with.
        """
        target = _import(self)
        arguments = {**{name: _made(value) for name, value in self.arguments.items()}, **more}
        try:
            inspect.signature(target).bind(**arguments)
            made = target(**arguments)
        except OddpatchError:
            raise
        except Exception as error:  # anything may be wrong with values out of a file
            raise CheckpointError(
                f"{self.source}: {self.target} cannot be built ({_reason(error)}): it was damaged or changed, or "
                "written by another version: train again"
            ) from error
        if self.kind is not None and not isinstance(made, _resolve(BASES[self.kind])):
            raise CheckpointError(f"{self.source}: {self.target} makes a {type(made).__name__}, no {CALLED[self.kind]}")
        return made


def read_spec(value: Any, kind: Kind, source: object, trust: Sequence[str] = ()) -> Spec:
    """What a file asks to have built as its `kind`; nothing but modules of oddpatch's classes is imported for it.

    Args:
        value: as it comes out of the file, of any type.
        source: the file, for messages.
        trust: packages of the user whose classes and functions may be built, too.

    Raises:
        CheckpointError: it names anything else, or holds more than plain values.
        ConfigError: `trust` names no package.
    """
    check_trust(trust)
    check_plain(value, kind, source)
    return _read(value, kind, kind, source, trust, deferred=False)


def check_trust(trust: Sequence[str]) -> None:
    """Raise a `ConfigError` unless `trust` lists packages."""
    if isinstance(trust, str):
        raise ConfigError(f"trust={trust!r} is one text: give a list of packages, as [{trust}]")
    for package in trust:
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise ConfigError(f"trust: {package!r} is no package: give its name as it is imported")
        if package.split(".")[0] == "oddpatch":
            raise ConfigError(f"trust: {package} needs no trust, what a file may build of it is built: leave it out")


def check_plain(value: Any, place: str, source: object) -> None:
    """Raise a `CheckpointError` unless `value` is made of dicts, lists, numbers, texts, booleans and None alone.

    Types must be these very ones, whatever derives from them is refused; keys are texts; numbers are finite.
    """
    pending: list[tuple[Any, str, int]] = [(value, place, 0)]
    seen = 0
    while pending:
        value, place, depth = pending.pop()
        seen += 1
        inside = len(value) if type(value) in (dict, list) else 0
        if depth > MAX_DEPTH or seen + len(pending) + inside > MAX_VALUES:
            raise CheckpointError(
                f"{source}: {_short(place)} is too large or too deeply nested for a config: train again"
            )
        if type(value) is dict:
            for key in value:
                if type(key) is not str:
                    raise CheckpointError(
                        f"{source}: {_short(place)} has the key {_short(repr(key))}, which is no text"
                    )
                if key.startswith("_") and key.endswith("_") and key not in ("_target_", "_partial_"):
                    raise CheckpointError(f"{source}: {_short(place)} has {_short(key)}: a file may not ask for it")
            pending += [(inner, f"{place}.{key}", depth + 1) for key, inner in value.items()]
        elif type(value) is list:
            pending += [(inner, f"{place}[{position}]", depth + 1) for position, inner in enumerate(value)]
        elif type(value) not in _PLAIN:
            raise CheckpointError(
                f"{source}: {_short(place)} is of type {type(value).__name__}: a file may hold numbers, texts, lists "
                "and mappings only"
            )
        elif type(value) is str and "${" in value and not _NAMED.search(place):
            raise CheckpointError(f"{source}: {_short(place)} is {_short(repr(value))}: a file may not interpolate")
        elif type(value) is float and not math.isfinite(value):
            raise CheckpointError(f"{source}: {_short(place)} is {value}, which is not finite: train again")


def may_be_known(name: Any, kind: Kind | None = None) -> bool:
    """Whether a full name is of the form that our classes of this kind, or of any, have; nothing is imported."""
    path = name.split(".") if isinstance(name, str) else []
    if len(path) != 4 or not all(part.isidentifier() and part[0] != "_" for part in path):
        return False
    if ".".join(path[:2]) not in {base.rsplit(".", 2)[0] for of, base in BASES.items() if kind in (of, None)}:
        return False
    if ".".join(path[:3]) in FETCHING:
        return False
    # By its listing: a file system that ignores case would find more.
    return any(f"{path[2]}.py" in {file.name for file in (root / path[1]).iterdir()} for root in _roots(path[0]))


def _roots(package: str) -> list[Path]:
    """The folders of a package, none if it is not installed; it is not imported."""
    found = importlib.util.find_spec(package)
    return [Path(root) for root in (found and found.submodule_search_locations) or ()]


def known_class(name: Any, kind: Kind) -> type | None:
    """Our class of this full name, None if there is none of this kind."""
    if not may_be_known(name, kind):
        return None
    return _own_class(name, kind)


@cache
def _own_class(name: str, kind: Kind) -> type | None:
    module, _, attribute = name.rpartition(".")
    found = vars(importlib.import_module(module)).get(attribute)
    own = getattr(found, "__module__", None) == module and getattr(found, "__qualname__", None) == attribute
    if not inspect.isclass(found) or not own or not issubclass(found, _resolve(BASES[kind])):
        return None
    return None if inspect.isabstract(found) else found


def with_defaults(value: Any) -> Any:
    """What a config says and, of each class of the table that it names, the constructor's defaults: plain values."""
    if isinstance(value, list | tuple):
        return [with_defaults(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    defaults: dict[str, Any] = {}
    found = next(filter(None, (known_class(value.get("_target_"), kind) for kind in KINDS)), None)
    if found is not None:
        for name, parameter in inspect.signature(found).parameters.items():
            if isinstance(parameter.default, (list, tuple, *_PLAIN)):
                defaults[name] = parameter.default
    return {key: with_defaults(inner) for key, inner in {**defaults, **value}.items()}


def _read(value: Any, kind: Kind | None, place: str, source: object, trust: Sequence[str], *, deferred: bool) -> Spec:
    target = value.get("_target_") if isinstance(value, Mapping) else None
    if type(target) is not str:
        raise CheckpointError(f"{source}: {_short(place)} does not name its class: train again")
    trusted = _is_trusted(target, trust)
    if kind == "data":  # its modules load Lightning, which only testing again needs
        known: Any = target if target in DATA_MODULES else None
    else:
        known = known_class(target, kind) if kind and not trusted else None
    if not trusted and known is None:
        raise CheckpointError(_refusal(target, kind, place, source))
    # Only where a class makes its parts itself does a description stand for what makes them.
    if value.get("_partial_", False) is not deferred:
        told = "lacks _partial_: true" if deferred else "has _partial_, which a file may not ask for there"
        raise CheckpointError(f"{source}: {_short(place)} {told}: train again")
    # Arguments that describe further objects: of which kind, and given as the "object" itself, as the "maker" that the
    # class calls with further arguments, or as "makers" by name.
    parts: Mapping[str, tuple[Kind, str]] = getattr(known, "parts", {})
    arguments = {}
    for name, inner in value.items():
        if name in ("_target_", "_partial_"):
            continue
        where, (of, given) = f"{place}.{name}", parts.get(name, (None, "object"))
        if of is None or (given == "object" and not isinstance(inner, Mapping)):
            arguments[name] = _plain_or_trusted(inner, where, source, trust, own=trusted)
        elif given != "makers":
            arguments[name] = _read(inner, of, where, source, trust, deferred=given == "maker")
        elif isinstance(inner, Mapping) and "_target_" not in inner:
            arguments[name] = {
                key: _read(one, of, f"{where}.{key}", source, trust, deferred=True) for key, one in inner.items()
            }
        else:
            raise CheckpointError(f"{source}: {_short(where)} maps no names to a {CALLED[of]}: train again")
    return Spec(target, kind, arguments, deferred, source, tuple(trust) if trusted else ())


def _plain_or_trusted(value: Any, place: str, source: object, trust: Sequence[str], *, own: bool) -> Any:
    """A plain value; where the class is the user's own (`own`), objects of a trusted package within it, too."""
    if isinstance(value, list):
        return [_plain_or_trusted(one, f"{place}[{i}]", source, trust, own=own) for i, one in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "_target_" in value or "_partial_" in value:
        if own and _is_trusted(value.get("_target_"), trust):
            return _read(value, None, place, source, trust, deferred=value.get("_partial_") is True)
        kind = next((kind for kind in KINDS if own and known_class(value.get("_target_"), kind)), None)
        if kind:  # such as the members of a user's own ensemble
            return _read(value, kind, place, source, trust, deferred=value.get("_partial_") is True)
        raise CheckpointError(_refusal(value.get("_target_"), None, place, source))
    return {key: _plain_or_trusted(one, f"{place}.{key}", source, trust, own=own) for key, one in value.items()}


def _refusal(target: object, kind: Kind | None, place: str, source: object) -> str:
    package = target.partition(".")[0] if isinstance(target, str) else ""
    if kind == "outlier" and package == "pyod" and not _roots(package):
        return f"{source}: {_short(place)} needs PyOD, which is not installed: pip install 'oddpatch[outlier]'"
    told = f"{source}: {_short(place)} asks for {_short(repr(target))}: a file may ask for " + (
        f"{'an outlier detector of PyOD' if kind == 'outlier' else f'a {CALLED[kind]} of oddpatch'}"
        if kind
        else "plain values there"
    )
    if package and package != "oddpatch" and package.isidentifier():
        told += f", and for classes of your own if you trust the file and name their package: --trust {_short(package)}"
    return told


def _is_trusted(target: object, trust: Sequence[str]) -> bool:
    return isinstance(target, str) and any(target.startswith(f"{package}.") for package in trust)


def _made(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.make if value.deferred else value.make()
    if isinstance(value, list):
        return [_made(one) for one in value]
    if isinstance(value, dict):
        return {key: _made(one) for key, one in value.items()}
    return value


def _import(spec: Spec) -> Any:
    if not spec.trust:
        return _resolve(spec.target)
    log.warning("%s: runs %s, of a package that you trust", spec.source, spec.target)
    try:
        found = _resolve(spec.target)
    except Exception as error:  # the user's own code may fail in any way
        raise CheckpointError(
            f"{spec.source}: {spec.target} cannot be imported ({_reason(error)}): install its package, or name its "
            "folder in PYTHONPATH"
        ) from error
    # What a trusted module has merely imported, such as os.system, is not of that package.
    if not callable(found) or not _is_trusted(f"{getattr(found, '__module__', '')}.", spec.trust):
        raise CheckpointError(f"{spec.source}: {spec.target} is no class or function of {' or '.join(spec.trust)}")
    return found


def _resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _reason(error: Exception) -> str:
    return _short(" ".join(f"{type(error).__name__}: {error}".split()), 300)


def _short(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
