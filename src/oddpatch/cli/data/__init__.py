"""`oddpatch data ...`: make, convert, check and describe datasets; the work is in `oddpatch.datatools`."""

import typer

from oddpatch.cli.data.align import align
from oddpatch.cli.data.check import check
from oddpatch.cli.data.convert import convert
from oddpatch.cli.data.extract import extract_good
from oddpatch.cli.data.masks import masks
from oddpatch.cli.data.render import render
from oddpatch.cli.data.split import split
from oddpatch.cli.data.stats import stats
from oddpatch.cli.data.unity import from_unity

app = typer.Typer(help="Make, convert, check and describe datasets.", no_args_is_help=True)
app.command(epilog="Example: oddpatch data masks captures/solo_1 masks --labels Crate,Box")(masks)
app.command(epilog="Example: oddpatch data check data/mvtec bottle --fix data/mended/bottle")(check)
app.command(
    "extract-good", epilog="Example: oddpatch data extract-good captures data/pcb/train/good --suffix _solo_16"
)(extract_good)
app.command(epilog="Example: oddpatch data convert deeppcb PCBData data")(convert)
app.command(epilog="Example: oddpatch data split data/mvtec/bottle bottle-4shot.json --shots 4")(split)
app.command(epilog="Example: oddpatch data render pcb data/pcb --train 200 --size 512")(render)
app.command("from-unity", epilog="Example: oddpatch data from-unity captures data/pcb --defects Scratch,Nail")(
    from_unity
)
app.command(epilog="Example: oddpatch data align data/part data/aligned/part --reference data/part/train/good/0.png")(
    align
)
app.command(epilog="Example: oddpatch data stats data/mvtec bottle --out bottle.png")(stats)
