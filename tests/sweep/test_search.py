"""A search: what is drawn from what, and a study that goes on. The jobs are stood in for by a function."""

import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sweeping import Stand, dataset, sweep, table

from oddpatch.errors import ConfigError
from oddpatch.sweep import job
from oddpatch.sweep.identity import Identity
from oddpatch.sweep.plan import Job
from oddpatch.sweep.process import Ending
from oddpatch.sweep.record import Record
from oddpatch.sweep.search import Search
from oddpatch.sweep.space import split

SAMPLER = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}


def parsed(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=choice(1,2.5)", CategoricalDistribution(["1", "2.5"])),
        ("x=a,null", CategoricalDistribution(["a", "null"])),
        ("x=range(50,300,50)", IntDistribution(50, 250, step=50)),
        ("x=range(0,1,0.25)", CategoricalDistribution(["0.0", "0.25", "0.5", "0.75"])),
        ("x=interval(0.1,1)", FloatDistribution(0.1, 1)),
        ("x=interval(1,9)", FloatDistribution(1, 9)),
        ("x=int(interval(1,9))", IntDistribution(1, 9)),
        ("x=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1, log=True)),
    ],
)
def test_what_is_drawn_follows_the_override(override, distribution):
    assert split(parsed(override))[0] == {"x": distribution}


def test_categories_are_run_not_drawn():
    space, others = split(parsed("x=1,2", "data.category=a,b", "seed=3"))
    assert list(space) == ["x"]
    assert [other.input_line for other in others] == ["data.category=a,b", "seed=3"]


@pytest.mark.parametrize("overrides", [("seed=3",), ("x=interval(2,1)",), ("x=tag(log,interval(0,1))",)])
def test_what_cannot_be_searched_is_refused(overrides):
    with pytest.raises(ConfigError, match=r"nothing to search|lower to a higher"):
        split(parsed(*overrides))


@pytest.fixture
def stand(monkeypatch):
    """A job is worth -(epsilon - 0.3)^2, half of it for the second category."""
    found = Stand()

    def objective(folder, name):
        command = next(command for name, command, _ in reversed(found.ran) if name == folder.name)
        epsilon = float(command.partition("model.epsilon=")[2].split()[0])
        return -((epsilon - 0.3) ** 2) * (0.5 if "category=tile_b" in command else 1)

    monkeypatch.setattr(job, "run_script", found)
    monkeypatch.setattr(job, "objective", objective)
    return found


@pytest.fixture
def root(tmp_path):
    return dataset(tmp_path)


def study(folder):
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    return optuna.load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))))


@pytest.mark.slow
def test_a_search_finds_goes_on_and_is_worth_the_mean_of_categories(monkeypatch, tmp_path, stand, root):
    (tmp_path / "data/tile_b").symlink_to(tmp_path / "data/tile")
    wanted = ("sweep=optuna", *root[:1], "data.category=all", "model.epsilon=interval(0.1,1.0)")
    assert sweep(monkeypatch, tmp_path / "s", *wanted, "hydra.sweeper.n_trials=3") == 0
    assert sweep(monkeypatch, tmp_path / "s", *wanted, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2") == 0
    assert len(stand.ran) == 10
    trials = study(tmp_path / "s").trials
    assert len({trial.params["model.epsilon"] for trial in trials}) == 5
    for trial in trials:
        assert trial.value == pytest.approx(-0.75 * (trial.params["model.epsilon"] - 0.3) ** 2)
    best = (tmp_path / "s/best.yaml").read_text()
    assert f"model.epsilon={study(tmp_path / 's').best_params['model.epsilon']}" in best
    assert len(table(tmp_path / "s")) == 4  # of the second run


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_the_others_go_on(monkeypatch, tmp_path, stand, root):
    stand.endings["model.num_features=7"] = Ending(1, "no such number")
    wanted = ("sweep=optuna", *root, "model.num_features=6,7", "model.epsilon=interval(0.1,1.0)")
    assert sweep(monkeypatch, tmp_path / "s", *wanted, "hydra.sweeper.n_trials=6") == 1
    states = [trial.state.name for trial in study(tmp_path / "s").trials]
    assert len(states) == 6
    assert set(states) == {"COMPLETE", "FAIL"}


class Launched:
    """Takes the place of a launcher: every job is done, and worth what `worth` says of its category."""

    def __init__(self, worth):
        self.worth = worth

    def launch(self, job_overrides, initial_job_idx):
        for overrides in job_overrides:
            folder, category = Path(overrides[-1]), overrides[0]
            folder.mkdir()
            record = Record("done", Identity("", "", ""), list(overrides), objective=self.worth[category])
            record.write(folder)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]


@pytest.mark.parametrize(
    ("worth", "value"),
    [({"a": 0.9, "b": 0.6, "c": 0.3}, 0.6), ({"a": 1.0, "b": 0.2, "c": 0.3}, 0.5), ({"a": 1, "b": None, "c": 1}, None)],
)
def test_a_trial_is_worth_the_mean_of_its_categories(tmp_path, worth, value):
    def plan(combinations):
        return [
            Job([*texts, f"{tmp_path}/{'-'.join(texts)}"], tmp_path / "-".join(texts), {}) for texts in combinations
        ]

    search = Search(tmp_path / "study.log", {"x": IntDistribution(0, 1000)}, "maximize", SAMPLER)
    outcomes: list[Any] = []
    trials = search.ask(2)
    search.run(trials, [[category] for category in worth], plan, Launched(worth), outcomes)
    assert len(outcomes) == 6
    assert [trial.value for trial in search.study.trials] == [pytest.approx(value) if value else None] * 2
    assert search.finished == 2


def test_a_trial_of_a_killed_search_is_run_again(tmp_path):
    space = {"x": IntDistribution(0, 1000)}
    search = Search(tmp_path / "study.log", space, "maximize", SAMPLER)
    killed, running = search.ask(2)
    killed.set_user_attr("owner", [os.uname().nodename, 2**22 + 1])  # no such process
    again = Search(tmp_path / "study.log", space, "maximize", SAMPLER)
    assert again.finished == 0
    assert again.ask(1)[0].params == killed.params
    assert again.ask(1)[0].params != running.params
