"""`oddpatch` on the command line. Commands live in `oddpatch.cli`; each imports what it needs when it runs."""

import logging
import sys
import traceback
from contextlib import suppress

import typer
from rich.console import Console

from oddpatch import __version__
from oddpatch.cli import backbone, data
from oddpatch.cli.bench import bench
from oddpatch.cli.calibrate import calibrate
from oddpatch.cli.compare import compare
from oddpatch.cli.demo import demo
from oddpatch.cli.drift import drift
from oddpatch.cli.explain import explain
from oddpatch.cli.export import export
from oddpatch.cli.init import init
from oddpatch.cli.predict import predict
from oddpatch.cli.report import report
from oddpatch.cli.reproduce import reproduce
from oddpatch.cli.train import PASSED_ON, evaluate, train
from oddpatch.cli.update import update
from oddpatch.cli.watch import watch
from oddpatch.ending import conclude, drop_unwritten, ending_when_told, open_closed_streams
from oddpatch.environment import read_env
from oddpatch.errors import in_one_line
from oddpatch.files import escape_on_terminal, shown
from oddpatch.logs import show_names

app = typer.Typer(
    help="Industrial visual inspection: learn what good parts look like, find the odd patch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(backbone.app, name="backbone")
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options before the command."""


app.command(context_settings=PASSED_ON)(train)
app.command("eval", context_settings=PASSED_ON)(evaluate)
app.command()(init)
app.command()(predict)
app.command()(watch)
app.command()(explain)
app.command()(update)
app.command()(calibrate)
app.command()(drift)
app.command()(export)
app.command()(bench)
app.command()(compare)
app.command()(report)
app.command()(reproduce)
app.command()(demo)


def main() -> None:
    """Run the command line; an error the user can mend is one line. The exit code of an error is 2.

    `train` and `eval` end as Hydra's programs do, with 1.
    """
    open_closed_streams()
    escape_on_terminal()
    if logging.lastResort is not None:  # what prints the warnings of a program that sets up no logging
        logging.lastResort.addFilter(show_names)
    terminal = Console(stderr=True)

    def tell(word: str) -> None:
        terminal.print(word, style="red")

    with ending_when_told(tell):
        try:
            try:
                read_env()
                app()
            finally:
                sys.stdout.flush()  # now, so that what cannot be written is an error like others
        except Exception as error:
            conclude(error, tell)
            drop_unwritten()
            with suppress(OSError):
                if (told := in_one_line(error)) is None:
                    traceback.print_exc()
                else:
                    terminal.print(f"error: {shown(told)}", style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(2)


if __name__ == "__main__":
    main()
