"""Objects from what a user composed."""

import difflib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from oddpatch.errors import ConfigError, OddpatchError, installing
from oddpatch.settings import check_types

#: Settings that describe an object which the class makes itself, of what it knows.
DESCRIBED = ("transform",)


def make(part: Any, **kwargs: Any) -> Any:
    """The object that a part of a composed config describes; an error of its constructor comes as it was raised.

    It calls whatever the config names: what comes out of a file goes through `oddpatch.known` instead.

    Raises:
        ConfigError: its class does not exist, or has no such setting.
    """
    composed = OmegaConf.is_config(part)
    settings: Any = OmegaConf.to_container(part, resolve=True, throw_on_missing=True) if composed else dict(part)
    name = part._get_full_key(None) if composed else ""
    # Hydra resolves what it builds from once more: a folder that is really called `${x}` would not survive that.
    texts = {
        key: value for key, value in settings.items() if key in DESCRIBED or (isinstance(value, str) and "${" in value)
    }
    try:
        build = instantiate({key: value for key, value in settings.items() if key not in texts} | {"_partial_": True})
    except InstantiationException as error:
        if isinstance(error.__cause__, OddpatchError):
            raise error.__cause__ from None
        if str(error).startswith("Error locating target"):
            reason = str(error).splitlines()[0].partition(", set env var")[0]
            if missing := missing_package(error):
                remedy = installing(missing) or "install it, or is its name spelt right?"
                raise ConfigError(f"{name or 'config'}: {reason}: {missing} is not installed: {remedy}") from None
            raise ConfigError(f"{name or 'config'}: {reason}: is its name spelt right?") from None
        raise
    _require_settings(build.func, settings, name)
    check_types(build.func, settings, name)
    return build(**texts, **kwargs)


def missing_package(error: BaseException | None) -> str | None:
    """The package whose absence an error comes from."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return package if importlib.util.find_spec(package) is None else None
        error = error.__cause__ or error.__context__
    return None


def _require_settings(target: Any, settings: Mapping[str, Any], name: str) -> None:
    """Refuse settings that a class does not have."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of a class in C
        return
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in settings:
        if key not in parameters and not key.startswith("_"):
            prefix = f"{name}." if name else ""
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"it has {', '.join(parameters)}"
            raise ConfigError(f"{prefix}{key}: {target.__name__} has no such setting: {hint}")
