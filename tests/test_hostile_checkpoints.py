"""Hostile checkpoints, through every way in: none has an effect, each ends in one line."""

import importlib.util
import os
import shutil
import sys
from typing import Any

import hostile
import pytest
import torch
from conftest import CONFIGS, ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from narrowing import present

from oddpatch import AnomalyDetector, factory
from oddpatch.cli import main as cli
from oddpatch.errors import OddpatchError

WAYS = ("load", "predict", "explain", "update", "eval")
#: The ways that look at what is changed, where not all do, or one that is enough where each takes seconds.
#: A folder or category may be called like a reference: it stays text, which `tests/test_known.py` shows.
LITERAL = {"config.run.category holds environment", "config.data.align holds environment"}
ONLY = {
    "source is beyond the images": ("explain",),
    "source is before the images": ("explain",),
    "source is of another shape": ("explain", "update"),
    "source is too short": ("explain", "update"),
    "source is of fractions": ("explain", "update"),
    "argument holds 100,000 lists": ("load",),
    "argument holds 100,000 mappings": ("load",),
}
NAMES = sorted(hostile.payloads(ROOT / "unused"))
FILES = sorted(hostile.files(ROOT / "unused"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiles):
    """A folder with a run whose checkpoint is in order, and a package that tells when it is imported."""
    folder = tmp_path_factory.mktemp("hostile")
    torch.save(hostile.sound(tiles), folder / "sound.ckpt")
    (folder / "hostile_package.py").write_text(f"open({str(folder / 'CANARY')!r}, 'w')\nclass Innocent: ...\n")
    torch.save(hostile.Pickled(f"touch {folder / 'CANARY'}"), folder / "evil.pth")
    (folder / "run/checkpoints").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def eval_main():
    spec = present(importlib.util.spec_from_file_location("eval_script", ROOT / "eval.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["eval_script"] = module
    present(spec.loader).exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def ways(place, tiles, eval_main):
    """Each way in, as a function that loads the run and gives the exit code of a program, or raises."""
    run, image = place / "run", tiles / "tile/test/spot/000.png"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(
            "eval", [f"run={run}", f"paths.output_dir={place}/eval", "hydra.run.dir=.", "trainer.accelerator=cpu"]
        )
    cfg.callbacks = {}

    def command(*arguments):
        def call():
            sys.argv = ["oddpatch", *map(str, arguments)]
            cli.main()

        return call

    return {
        "load": lambda: AnomalyDetector.load(run),
        "predict": command("predict", run, image),
        "explain": command("explain", run, image, "--out", place / "explained.png"),
        "update": command("update", run, tiles / "tile/test/good", "--out", place / "updated"),
        "eval": lambda: eval_main(cfg),
    }


def told_by(call, capsys, caplog):
    """What a way in says of a checkpoint that it refuses, and how it ends."""
    caplog.clear()
    try:
        call()
    except OddpatchError as error:
        return str(error), "raised"
    except SystemExit as error:
        shown = capsys.readouterr()
        return "\n".join([shown.err, *(record.getMessage() for record in caplog.records)]).strip(), error.code
    return "", 0


def refused(place, ways, way, capsys, caplog, monkeypatch, literal=False):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.syspath_prepend(place)  # what a file may not import is there to be imported
    with hostile.watched() as effects:
        text, code = told_by(ways[way], capsys, caplog)
    # The folder that the user chose, where Lightning looks for a GPU, and the draft that `update` takes away again.
    own = f"{place}/eval", "libnvidia-ml", f"{place}/.updated."
    effects = [effect for effect in effects if not any(name in effect for name in own)]
    assert effects == []
    assert not (place / "CANARY").exists()
    assert "hostile_package" not in sys.modules
    if literal:
        return
    assert code == ("raised" if way == "load" else 1 if way == "eval" else 2), text
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    assert all(c.isprintable() for c in text)
    assert not (place / "updated").exists()
    assert not (place / "explained.png").exists()


@pytest.mark.parametrize("name", NAMES)
def test_no_hostile_checkpoint_has_an_effect(place, ways, name, capsys, caplog, monkeypatch):
    content = torch.load(place / "sound.ckpt", weights_only=True)
    hostile.payloads(place / "CANARY")[name](content)
    hostile.save(content, place / "run" / factory.CHECKPOINT)
    for way in ["load"] if name in LITERAL else ONLY.get(name, WAYS):
        refused(place, ways, way, capsys, caplog, monkeypatch, literal=name in LITERAL)


@pytest.mark.parametrize("name", FILES)
def test_no_other_file_has_an_effect(place, ways, name, capsys, caplog, monkeypatch):
    path = place / "run" / factory.CHECKPOINT
    path.unlink(missing_ok=True)
    path.write_bytes(hostile.files(place / "CANARY")[name])
    for way in WAYS:
        refused(place, ways, way, capsys, caplog, monkeypatch)


@pytest.mark.parametrize("way", WAYS)
def test_the_checkpoint_they_are_made_of_is_in_order(place, ways, way, capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    hostile.save(torch.load(place / "sound.ckpt", weights_only=True), place / "run" / factory.CHECKPOINT)
    text, code = told_by(ways[way], capsys, caplog)
    shutil.rmtree(place / "updated", ignore_errors=True)
    (place / "explained.png").unlink(missing_ok=True)
    assert code == 0 or (way == "predict" and code == 1), text


def test_the_watch_sees_what_hostile_files_would_do(tmp_path):
    with hostile.watched() as effects:
        os.system(f"touch {tmp_path}/x")
        (tmp_path / "y").write_text("")
        (tmp_path / "y").read_text()
    assert len(effects) == 2
    assert effects[0].startswith("os.system")
    assert effects[1].startswith("open")


def test_eval_makes_no_data_set_where_a_checkpoint_says(place, ways, tmp_path, capsys, caplog, monkeypatch):
    content = torch.load(place / "sound.ckpt", weights_only=True)
    content["oddpatch"]["config"]["data"] |= {"root": str(tmp_path / "made"), "category": "pcb", "render": "pcb"}
    hostile.save(content, place / "run" / factory.CHECKPOINT)
    refused(place, ways, "eval", capsys, caplog, monkeypatch)
    assert not (tmp_path / "made").exists()


@pytest.fixture
def own(place, monkeypatch):
    """A checkpoint whose detector is of a package of the user's."""
    (place / "own_package.py").write_text(
        "from oddpatch.models.patchcore import PatchCore\nclass Mine(PatchCore): ...\nOPENED = open(__file__)\n"
    )
    monkeypatch.syspath_prepend(place)
    content = torch.load(place / "sound.ckpt", weights_only=True)
    content["oddpatch"]["config"]["model"]["_target_"] = "own_package.Mine"
    hostile.save(content, place / "run" / factory.CHECKPOINT)
    yield place / "run"
    sys.modules.pop("own_package", None)


def test_own_classes_load_by_the_word_of_the_user(own, ways, tiles, eval_main, capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    for way in WAYS:
        text, code = told_by(ways[way], capsys, caplog)
        assert code != 0
        assert "--trust own_package" in text
    assert "own_package" not in sys.modules
    image = tiles / "tile/test/spot/000.png"
    for arguments in (("predict", own, image), ("explain", own, image, "--out", own / "explained.png")):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["oddpatch", *map(str, arguments), "--trust", "own_package"])
        with pytest.raises(SystemExit) as error:
            cli.main()
        assert error.value.code in (0, 1, None)
        assert "runs own_package.Mine, of a package that you trust" in caplog.text
    scorer: Any = AnomalyDetector.load(own, trust=["own_package"]).scorer
    assert type(scorer.model.detector).__name__ == "Mine"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = [f"run={own}", f"paths.output_dir={own}/eval", "hydra.run.dir=.", "trainer.accelerator=cpu"]
        cfg = compose("eval", [*overrides, "trust=[own_package]"])
    cfg.callbacks = {}
    eval_main(cfg)
