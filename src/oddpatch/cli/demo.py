"""`oddpatch demo`: the page in the browser."""

from typing import Annotated

import typer


def demo(
    run: Annotated[
        str | None, typer.Argument(help="Finished run to begin with. (default: one is fitted in the page)")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 8501,
) -> None:
    """Fit and inspect in the browser, on rendered circuit boards or on your own images.

    Only this machine can open the page. What is uploaded goes into a temporary folder and is removed in the end.

    Examples:
      oddpatch demo
      oddpatch demo outputs/RUN --port 8600
    """
    from oddpatch.demo.server import serve

    serve(run, port)
