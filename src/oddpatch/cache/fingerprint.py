"""Everything but the image that decides what its features are, summed up in one name."""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oddpatch.environment import library_versions

if TYPE_CHECKING:
    from oddpatch.models.anomaly_model import AnomalyModel

#: Libraries that decode, resize and compute.
LIBRARIES = (
    "efficientnet-pytorch", "kornia-rs", "numpy", "opencv-python-headless", "openvino", "pillow", "tifffile", "timm",
    "torch", "torchvision",
)  # fmt: skip
#: Parts of oddpatch between a file and its features.
SOURCES = ("backbones", "cache", "data", "ops/precision.py")


def fingerprint(model: "AnomalyModel", backbone: Any, device: torch.device) -> str:
    """A name for what this model's preprocessing and backbone make of an image on this device.

    Args:
        model: before or after its fit, which does not matter to the features.
        backbone: the config that it was built from.
        device: where it runs.
    """
    described = {
        "preprocess": model.preprocess.settings(),
        "backbone": backbone,
        "runtime": repr(model.backbone.runtime),
        "engine": type(model.backbone._engine).__name__,  # openvino may not be installed
        "weights": hash_tensors(model.backbone.state_dict()).hex(),
        "device": _describe(device),
        "precision": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
        "libraries": library_versions(LIBRARIES),
        "source": _hash_sources(Path(__file__).parents[1]),
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor], key: str = "") -> bytes:
    """Hash (20 bytes) of `key` and of tensors, with their names, shapes and types."""
    digest = hashlib.blake2b(key.encode(), digest_size=20)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _describe(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device)]
    # Some convolutions sum in another order on another number of threads.
    return [device.type, platform.machine(), torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]


def _hash_sources(package: Path) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in SOURCES:
        for path in sorted((package / part).rglob("*.py")) if (package / part).is_dir() else [package / part]:
            digest.update(path.read_bytes())
    return digest.hexdigest()
