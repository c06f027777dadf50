"""The pages, as Jinja templates."""

import functools
from typing import TYPE_CHECKING, Any

from oddpatch.wording import counted, listed

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """A page of this folder: whatever is put into it is escaped."""
    return _environment().get_template(template).render(**values)


@functools.cache  # which keeps the templates compiled
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("oddpatch.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(counted=counted, listed=listed)
    return environment
