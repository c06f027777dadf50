"""Sweeps that cannot begin, here or on another machine: one line."""

import subprocess

import pytest
from hydra import compose, initialize
from narrowing import stand_in
from omegaconf import OmegaConf

from hydra_plugins.oddpatch_sweep.sweepers import GridSweeper, SearchSweeper
from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import holding
from oddpatch.sweep import plan, reproduction
from oddpatch.sweep.job import sweep_job
from oddpatch.sweep.remote import RemoteJob


def test_all_categories_of_a_dataset_without_a_folder_are_refused(monkeypatch):
    monkeypatch.setattr(plan, "composed", lambda *given: OmegaConf.create({"data": {}}))
    with pytest.raises(ConfigError, match=r"data\.category=all: this dataset has no data\.root to look for categories"):
        plan.expand_categories(None, stand_in(), ["data.category=all"])


@pytest.mark.parametrize("gone", ["checkout", "sweep"])
def test_a_machine_that_lacks_a_folder_says_which_must_be_shared(tmp_path, gone):
    for name in {"checkout", "sweep"} - {gone}:
        (tmp_path / name).mkdir()
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
    job = stand_in(cwd=str(tmp_path / "checkout"), config=config)
    with pytest.raises(
        ConfigError, match=rf"{gone} does not exist on .*: .* must lie at the same path on every machine"
    ):
        RemoteJob._enter(job)  # noqa: SLF001 - what comes before a job, which composes a config


def test_a_run_below_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with initialize(version_base=None, config_path=None):
        config = compose(overrides=[f"hydra.run.dir={tmp_path}/file/run"], return_hydra_config=True)
    with pytest.raises(SystemExit) as ended:
        holding.HoldFolder().on_run_start(config)
    assert ended.value.code == 1
    assert "file/run cannot be written (Not a directory): choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"n_trials": 0}, {"n_jobs": 0}, {"direction": "up"}])
def test_a_search_that_cannot_work_is_refused(settings):
    pytest.importorskip("optuna")
    nothing = stand_in()
    told = r"hydra\.sweeper: n_trials=.* and n_jobs=.* must be at least 1, and direction=.* maximize or minimize"
    with pytest.raises(ConfigError, match=told):
        SearchSweeper(**settings).setup(hydra_context=nothing, task_function=nothing, config=nothing)


def test_a_sweep_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    sweeper = GridSweeper()
    sweeper.hydra_context = stand_in(config_loader=None)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "file/sweep")}}})
    with pytest.raises(
        ConfigError, match=r"file/sweep cannot be written \(Not a directory\): set hydra\.sweep\.dir to"
    ):
        sweeper.sweep([])


def test_ctrl_c_in_a_recipe_ends_the_reproduction(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda command, check: stand_in(returncode=130))
    with pytest.raises(KeyboardInterrupt):
        reproduction.run(stand_in(command=lambda folder, data: []), tmp_path, None)


def test_several_categories_without_a_sweep_are_refused(tmp_path):
    config = OmegaConf.create({"data": {"category": "bolt,nut", "root": str(tmp_path)}})
    told = (
        r"data\.category=bolt,nut is many runs: add -m, .*; for one model of all of them, data\.category=\[bolt,nut\]"
    )
    with pytest.raises(ConfigError, match=told):
        sweep_job(lambda cfg: cfg)(config)
    (tmp_path / "bolt,nut").mkdir()  # a category that is really called so
    assert sweep_job(lambda cfg: cfg)(config) is config
