"""`oddpatch backbone ...`: look at the networks that make features. Only parsing and printing."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from oddpatch.backbones.inspection import Description

app = typer.Typer(help="Look at the networks that make features.", no_args_is_help=True)


@app.command(epilog="Example: oddpatch backbone nodes vgg16")
def nodes(
    name: str = typer.Argument(
        help="Name of a torchvision network, or of a timm model; where both have it, timm's with its tag."
    ),
) -> None:
    """List the nodes of a network that can be its layers, with channels and stride."""
    from rich.console import Console

    from oddpatch.backbones.inspection import nodes_of

    table = _table("node", "channels", "stride")
    for node, (channels, stride) in nodes_of(name).items():
        table.add_row(node, str(channels), str(stride))
    Console().print(table)


@app.command(epilog="Example: oddpatch backbone show effnet_lite0 --speed")
def show(
    name: str = typer.Argument(help="A YAML of configs/backbone, or the name of a timm model."),
    size: int = typer.Option(224, min=8, help="Side of the images."),
    engine: str = typer.Option("torch", help="What runs the network for --speed: torch or openvino."),
    speed: bool = typer.Option(False, "--speed", help="Measure images per second on this machine."),
    batch: int = typer.Option(1, min=1, help="Images at once for --speed."),
) -> None:
    """Show a backbone's layers, what they cost, and where its weights are."""
    from rich.console import Console

    from oddpatch.backbones.engine import Runtime
    from oddpatch.backbones.inspection import describe, images_per_second, on_meta, settings_of, with_weights

    settings = settings_of(name)
    runtime = Runtime(engine)
    about = describe(on_meta(settings), (size, size))
    backbone, origin = with_weights(settings)
    facts: dict[str, Any] = {
        "network": settings["name"],
        "parameters": f"{about.parameters / 1e6:.2f} M, up to the last layer",
        "cost": f"{about.flops / 1e9:.2f} GFLOPs an image (multiply and add count as two)",
        "weights": origin,
    }
    if speed:
        backbone.run_with(runtime)
        rate = images_per_second(backbone, (size, size), batch)
        facts["speed"] = f"{rate:.1f} images/s with {engine}, batch {batch}"
    console = Console()
    console.print(layer_table(about, size))
    for key, value in facts.items():
        console.print(f"{key:<11}{value}", markup=False, highlight=False)


def layer_table(about: "Description", size: int) -> "Table":
    """A row for each layer."""
    table = _table("layer", "channels", "stride", f"map at {size}")
    info = about.info
    for layer, (channels, height, width), stride in zip(info.layers, about.shapes, info.strides, strict=True):
        table.add_row(str(layer), str(channels), str(stride), f"{height} x {width}")
    return table


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for other in others:
        table.add_column(other, justify="right")
    return table
