"""Which methods and backbones the page offers: those of the packaged configs that good images alone suffice for."""

from pathlib import Path
from typing import Any

import oddpatch
from oddpatch.files import read_yaml

CONFIGS = Path(oddpatch.__file__).parent / "configs"


def methods() -> dict[str, str]:
    """Title by name. Left out are methods that need defects, the images to be tested, or several backbones."""
    found = {}
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        settings = read_yaml(path)
        others = [key for choice in settings.get("defaults", ()) if isinstance(choice, dict) for key in choice]
        if "override /learning" in others or "member" in settings:
            continue
        target = settings.get("_target_") or settings["model"]["_target_"]
        found[path.stem] = _title(path, target.rpartition(".")[2])
    return _first(found, "padim", "patchcore")


def backbones() -> dict[str, str]:
    """Description by name; those whose weights are installed with oddpatch come first, others are downloaded."""
    packaged, others = {}, {}
    for path in sorted((CONFIGS / "backbone").glob("*.yaml")):
        settings: dict[str, Any] = read_yaml(path)
        if "members" in settings:
            continue
        if "package" in settings:
            packaged[path.stem] = f"{path.stem} (installed)"
        else:
            others[path.stem] = f"{path.stem} (weights are downloaded once)"
    return packaged | others


def _title(path: Path, class_name: str) -> str:
    """As the comment at the top of the file has it, else as the class is called."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    comment = first if first.startswith("# ") else ""
    named = comment[2:].partition(" (arXiv")[0].partition(":")[0]
    return named if comment and len(named) < 20 and "@" not in named else class_name


def _first(found: dict[str, str], *names: str) -> dict[str, str]:
    return {name: found[name] for name in (*names, *(other for other in found if other not in names))}
