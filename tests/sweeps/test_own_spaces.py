"""Search spaces in files, which may register environments of their own."""

import sys

import pytest
from ray import cloudpickle, tune
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_kd import load_teacher, search_space
from rllib_kd.sweeps.space import read_space
from rllib_kd.sweeps.spec import SPACE as OWN_SPACE
from rllib_kd.sweeps.spec import check_spec, write_spec
from rllib_kd.sweeps.sweep import Sweep
from tests.conftest import exit_code
from tests.environments.own_files import write_files
from tests.experiment.test_own_environments import HEAD, KINDS

SPACE = "def search_space(teacher, **figures): return {}\n"


@pytest.fixture
def files(own_folder):
    return write_files(own_folder)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "registered" in kind and "file" in kind])
def test_pickles_make_what_a_space_file_has_registered(files, kind):
    """A worker of Ray has not run the file."""
    (files / "space.py").write_text(f"{HEAD}{KINDS[kind][0]}{SPACE}")
    assert read_space("space.py")(None) == {}
    assert not {"experiment", "<run_path>"} & set(sys.modules)
    pickled = cloudpickle.dumps(_global_registry.get(ENV_CREATOR, "hall"))
    assert cloudpickle.loads(pickled)(EnvContext({"size": 3}, 0)).unwrapped.size == 3


def test_the_line_of_a_space_file_that_raises_is_named(files):
    (files / "space.py").write_text("\nraise RuntimeError('boom')\n")
    with pytest.raises(ValueError, match=r"^'space.py' cannot be run: RuntimeError: boom \(.*space.py:2"):
        read_space("space.py")


def test_a_space_is_a_function(files):
    (files / "space.py").write_text("search_space = {}\n")
    with pytest.raises(ValueError, match=r"defines no search_space\(\)"):
        read_space("space.py")


def test_a_sweep_names_the_file_in_which_its_environment_is_registered(files, monkeypatch):
    """Its students' checkpoints record the name, so that other commands can make the environment."""
    (files / "space.py").write_text(f"{HEAD}{KINDS['a registered function of the file'][0]}{SPACE}")
    swept = []

    def run(sweep, **_):
        swept.append(sweep)
        raise ValueError("far enough")

    monkeypatch.setattr(Sweep, "run", run)
    exit_code("sweep", "--teacher", "t", "--env", "hall", "--space", "space.py")
    (sweep,) = swept
    assert (sweep.env, sweep.name) == (f"{files}/space.py:hall", "sweep-hall")


def test_values_of_an_own_space_are_not_rounded(tmp_path):
    own = {"lr": tune.uniform(0.001, 0.01), "gamma": tune.choice([0.99, 0.9996])}
    for space, expected in ((lambda teacher, **figures: own, set()), (search_space, {"lr", "temperature"})):
        sweep = Sweep(
            "cartpole",
            "CartPole-v1",
            search="random",
            space=space,
            storage_path=str(tmp_path),
            config={"training_intensity": 4.0},
        )
        sweep._space(load_teacher("cartpole"), 0.1)
        assert sweep._rounded == expected


@pytest.mark.parametrize(
    ("begun", "now", "message"),
    [
        ({"lr": tune.loguniform(1e-3, 0.1)}, {"lr": tune.loguniform(1e-3, 0.1 + 1e-7)}, None),
        ({"lr": tune.loguniform(1e-3, 0.1)}, {"lr": tune.uniform(1e-3, 0.1)}, "which differs in lr"),
        ({"lr": tune.choice([0.1])}, {"lr": tune.choice([0.1, 0.2]), "tau": tune.choice([1])}, "differs in lr, tau"),
        (None, {"lr": tune.choice([0.1])}, "another search space, which differs in lr"),
        ({"lr": tune.choice([0.1])}, None, "another search space, which differs in lr"),
        (None, None, None),
    ],
)
def test_a_sweep_is_resumed_with_the_space_that_it_began_with(tmp_path, begun, now, message):
    """Tune keeps the old space without a word."""
    write_spec(str(tmp_path), {"minimize": "bytes", OWN_SPACE: begun})
    if message is None:
        check_spec(str(tmp_path), {OWN_SPACE: now})
        return
    with pytest.raises(ValueError, match=message):
        check_spec(str(tmp_path), {OWN_SPACE: now})


def test_a_sweep_of_a_version_that_kept_no_space_is_resumed(tmp_path):
    write_spec(str(tmp_path), {"seed": 0, "minimize": "bytes"})
    check_spec(str(tmp_path), {"seed": 0, OWN_SPACE: {"lr": tune.choice([0.1])}})


def test_a_sweep_of_a_version_that_kept_no_costs_is_refused(tmp_path):
    write_spec(str(tmp_path), {"seed": 0})
    with pytest.raises(ValueError, match=r"by a version of rllib-kd before 0\.2, whose sweeps cannot be resumed"):
        check_spec(str(tmp_path), {"seed": 0})
