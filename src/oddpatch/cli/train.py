"""`oddpatch train` and `oddpatch eval`: all that follows is Hydra's."""

import sys

import typer

#: Settings of a command whose arguments are read by another program.
PASSED_ON = {
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def train(context: typer.Context) -> None:
    """Fit to images of good parts, test and report: oddpatch train data=mvtec data.root=FOLDER; see --help."""
    sys.argv = ["oddpatch train", *context.args]
    from oddpatch.train import main

    main()


def evaluate(context: typer.Context) -> None:
    """Test a finished run again: oddpatch eval run=FOLDER."""
    sys.argv = ["oddpatch eval", *context.args]
    from oddpatch.eval import main

    main()
