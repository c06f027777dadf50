"""Which jobs a sweep has."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from sweeping import loaded

from oddpatch.errors import ConfigError, DataError
from oddpatch.sweep.plan import grid, plan


@pytest.fixture
def root(tmp_path):
    """Two datasets: `first` has three categories, `second` one; one name has what a shell and Hydra stumble over."""
    for name in ("first/screw", "first/bottle", "first/metal nut, old", "second/cable"):
        (tmp_path / name / "train/good").mkdir(parents=True)
    (tmp_path / "first/license").mkdir()
    return tmp_path


def jobs_of(*overrides, sweep_dir):
    fixed = [o for o in overrides if o.startswith("hydra.")]
    loader, config = loaded(f"hydra.sweep.dir={sweep_dir}", *fixed)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([o for o in overrides if o not in fixed])
    combinations = grid(parsed)
    return loader, config, plan(loader, config, combinations)


def composed(loader, config, job):
    return loader.load_sweep_config(config, job.overrides)


def test_all_becomes_the_categories_that_are_there_in_order(root, tmp_path):
    loader, config, jobs = jobs_of(
        "model=padim,spade", "data=mvtec", f"data.root={root}/first", "data.category=all", sweep_dir=tmp_path
    )
    found = [(composed(loader, config, job).data.category, job.folder.name.split("-")[0]) for job in jobs]
    names = ["bottle", "metal nut, old", "screw"]
    assert found == [(name, model) for model in ("padim", "spade") for name in names]


def test_each_dataset_has_its_own_categories(root, tmp_path):
    loader, config, jobs = jobs_of(
        "data=mvtec", f"data.root={root}/first,{root}/second", "data.category=all", sweep_dir=tmp_path
    )
    found = [
        (composed(loader, config, job).data.root[-6:], composed(loader, config, job).data.category) for job in jobs
    ]
    assert found[-1] == ("second", "cable")
    assert len(found) == 4


def test_named_categories_are_left_to_hydra(root, tmp_path):
    _, _, jobs = jobs_of("data=mvtec", f"data.root={root}/first", "data.category=screw,bottle", sweep_dir=tmp_path)
    assert ["data.category=screw" in job.overrides for job in jobs] == [True, False]


def test_a_root_without_categories_is_named(root, tmp_path):
    with pytest.raises(DataError, match=r"license holds no folder with train/good"):
        jobs_of("data=mvtec", f"data.root={root}/first/license", "data.category=all", sweep_dir=tmp_path)
    with pytest.raises(DataError, match=r"nowhere: no such data folder: point data.root at"):
        jobs_of("data=mvtec", f"data.root={root}/nowhere", "data.category=all", sweep_dir=tmp_path)


def test_a_job_keeps_its_folder_when_the_sweep_grows(tmp_path):
    few = jobs_of("model=padim", "seed=1,2", sweep_dir=tmp_path)[2]
    more = jobs_of("model=spade,padim", "seed=0,1,2", sweep_dir=tmp_path)[2]
    assert {job.folder for job in few} < {job.folder for job in more}
    assert len({job.folder for job in more}) == 6


def test_a_job_that_is_asked_for_twice_is_run_once(tmp_path):
    assert len(jobs_of("model=padim,padim", sweep_dir=tmp_path)[2]) == 1


def test_two_jobs_in_one_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"hydra.sweep.subdir gives .*same to two jobs"):
        jobs_of("seed=1,2", "hydra.sweep.subdir=same", sweep_dir=tmp_path)


def test_a_grid_has_no_intervals(tmp_path):
    with pytest.raises(ConfigError, match=r"interval\(1,3\): a grid has no intervals.*sweep=optuna"):
        jobs_of("model.epsilon=interval(1,3)", sweep_dir=tmp_path)
