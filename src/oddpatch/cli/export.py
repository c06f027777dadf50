"""`oddpatch export`: a finished run as an artifact for other engines."""

from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import Trust, tell


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or a checkpoint.")],
    kind: Annotated[str, typer.Option("--format", help="onnx, openvino or torch.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="File to write. (default: model.onnx, .xml or .pt2 in the run's folder)")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the weights: float32, float16 or int8.")] = "float32",
    max_changed_decisions: Annotated[
        int, typer.Option(help="Images that a lower precision may judge otherwise.", min=0)
    ] = 0,
    root: Annotated[
        Path | None, typer.Option(help="Where the folder of the categories is now, if it was moved.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Write a run as one artifact, from resized pixels to the decision, for ONNX Runtime, OpenVINO or torch.

    It is compared with the run on the run's own images, good ones held out of the fit and those of the test: unless
    score, map and decision agree, nothing is written. AnomalyDetector.load, predict and bench take it as they take a
    run, without loading torch.

    Examples:
      oddpatch export outputs/RUN
      oddpatch export outputs/RUN --format openvino --precision int8 --out part.xml
    """
    from oddpatch.export.exporting import export

    done = export(run, kind, out, precision, max_changed_decisions, root, trust or ())
    tell(f"written: {done.path}, {done.size / 1e6:.1f} MB, {precision}")
    tell(str(done.parity))
    for path in done.parity.changed:
        tell(f"changed decision: {path}")
