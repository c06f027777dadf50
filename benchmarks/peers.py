"""Environments that peers are measured in, made on first use, and what both sides share."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import BUILD, BenchmarkError, Options, Used, run

ANOMALIB = "2.7.0"
#: What both sides have in the same version, as installed here.
SHARED = ("torch", "torchvision", "timm", "openvino", "onnx", "onnxscript", "lightning", "opencv-python-headless")
#: What anomalib runs as timm's tf_efficientnet_lite0, with layers as named there.
BACKBONE = "effnet_lite0"
METRICS = {"image AUROC": "image_AUROC", "pixel AUROC": "pixel_AUROC", "AU-PRO": "pixel_AUPRO"}


def anomalib() -> Path:
    """The Python of an environment that has anomalib, made with uv the first time.

    Raises:
        BenchmarkError: it cannot be installed.
    """
    from importlib.metadata import version

    folder = BUILD / "peers" / f"anomalib-{ANOMALIB}"
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise BenchmarkError("anomalib cannot be installed without uv: pip install uv")
    pins = [f"{name}=={version(name)}" for name in SHARED]
    print(f"installing anomalib {ANOMALIB} into {folder}", file=sys.stderr)
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
        [uv, "pip", "install", "--quiet", "--python", python, f"anomalib[openvino]=={ANOMALIB}", *pins],
    ]
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        except (subprocess.SubprocessError, OSError) as error:
            told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise BenchmarkError(f"anomalib {ANOMALIB} could not be installed: {told[-1]}") from None
    done.touch()
    return python


def weights(backbone: str) -> tuple[Path, Mapping[str, Any]]:
    """A file with the weights of the whole network, so that both sides have the same, and its `FeatureInfo`.

    Made by a process of its own: the peak memory of a process is never less than that of whoever started it.
    """
    path = BUILD / "peers" / f"{backbone}.pt"
    return path, run([sys.executable, __file__, backbone, path]).facts


def main() -> None:
    """Write the weights of a backbone to a file, and print its `FeatureInfo`."""
    import torch

    from oddpatch.backbones.inspection import settings_of
    from oddpatch.hydra_entry.building import make

    backbone, path = sys.argv[1], Path(sys.argv[2])
    network = make({**settings_of(backbone), "layers": [1, 2, 3, 4]})
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.contiguous() for name, value in network.network.state_dict().items()}, path)
    print(json.dumps({"mean": network.info.mean, "std": network.info.std}))


def fit_and_test(
    options: Options, model: str, layers: list[str], settings: dict[str, Any], export: Path | None = None
) -> Used:
    """Fit and test with anomalib: CPU seconds without start-up, memory of its largest process, metrics."""
    if options.backbone != BACKBONE:
        raise BenchmarkError(f"the layers of anomalib are known for {BACKBONE} alone: leave --backbone out")
    path, info = weights(options.backbone)
    spec = {
        "model": model, "settings": settings, "root": str(options.root), "category": options.category,
        "weights": str(path), "backbone": "tf_efficientnet_lite0", "layers": layers, **info,
        "workers": 2, "device": options.device, "export": export and str(export),
    }  # fmt: skip
    return run([anomalib(), Path(__file__).parent / "peer_anomalib.py", json.dumps(spec)])


if __name__ == "__main__":
    main()
