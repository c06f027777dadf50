"""The pages, as Jinja templates."""

from typing import Any

from oddpatch.wording import counted, listed


def render(template: str, **values: Any) -> str:
    """A page of this folder: whatever is put into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("oddpatch.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(counted=counted, listed=listed)
    return environment.get_template(template).render(**values)
