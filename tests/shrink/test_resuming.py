"""Runs that are interrupted anywhere, and resumed: without Ray, in a world where students are numbers."""

import json
import re
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rllib_kd import Shrink
from rllib_kd.certificates.games import Games
from rllib_kd.evaluation.validation import Validation
from rllib_kd.export.costs import Cost
from rllib_kd.offline.fingerprint import fingerprint
from rllib_kd.shrink import arena as module_of_arena
from rllib_kd.shrink import run as module_of_run
from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.checks import Checks
from rllib_kd.shrink.outcome import CERTIFICATE
from rllib_kd.shrink.progress import Progress, check_unchanged, options_of
from rllib_kd.students.restarts import names_of, student_of
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module

SIZES = [mlp(()), mlp((2,)), mlp((4,)), mlp((8,))]
#: Return ratio of each size after 1,000 env steps. Small ones are worse in a test than they seemed to be, and fail.
ABLE = {"linear": 0.985, "units-2": 0.982, "units-4": 1.0, "units-8": 1.0}
TEACHER, RANDOM = 100.0, 0.0


class KilledError(BaseException):
    """The process ends here."""


class World:
    """Students, their training and their episodes; `at` is called before whatever happens, with its name."""

    def __init__(self, at=lambda what: None):
        self.at = at

    @contextmanager
    def running(self, config):
        yield Training(self)

    def measure(self, modules, pipeline, minimize):
        return {name: Cost(10 * place + 10, 40 * place + 40) for place, name in enumerate(modules)}


class Training:
    def __init__(self, world):
        self.world, self.env_steps = world, 0

    def train(self, is_over, report):
        while not is_over():
            self.world.at("train")
            self.env_steps += 50
            report()

    def prefer(self, sizes, *, resting):
        pass

    @property
    def seen_returns(self):
        return np.array([-10.0, self.env_steps / 10])

    def save(self, folder):
        self.world.at("save")
        folder.mkdir()
        (folder / "env_steps").write_text(str(self.env_steps))

    def restore(self, folder, state):
        self.env_steps = int((folder / "env_steps").read_text())
        assert state == {"env_steps": self.env_steps, "returns": self.seen_returns.tolist()}

    def copies(self):
        names = [name for size in SIZES for name in names_of(size.name, 2)]
        return {name: self.student(name, place) for place, name in enumerate(names)}

    def student(self, name, place):
        module = torch.nn.Linear(1, 1, bias=False)
        value = ABLE[student_of(name)] - 0.02 * (1_000 - self.env_steps) / 1_000 - 0.001 * (place % 2)
        module.weight.data[:] = value if self.env_steps else 0.0
        return module

    def pipeline(self):
        return None

    def shapes(self):
        return {size.name: {"fcnet_hiddens": []} for size in SIZES}


class WorldGames(Games):
    """Episodes whose returns depend on student and seed alone."""

    world = World()

    def _happens(self, what):
        self.world.at(what)
        self._advance(0)

    def _returns(self, player, seeds, *, chooses):
        self._happens("play")
        is_random = type(player).__name__ == "RandomActions"
        self._played = [*getattr(self, "_played", []), *seeds]
        return [RANDOM if is_random else TEACHER + noise(seed, 1) for seed in seeds]

    def validate(self, modules, pipeline, first, count):
        self._happens("validate")
        seeds = range(first, first + count)
        returns = {name: [value(module, seed) for seed in seeds] for name, module in modules.items()}
        return Validation(returns, env_steps=count * len(modules), seconds=0.0)

    def certificate_episodes(self, student, first, count):
        self._happens("test")
        worse = 5.0 if student.weight.item() < 0.99 else 0.0
        own = [value(student, seed) - worse for seed in range(10**6 + first, 10**6 + first + count)]
        return np.concatenate([[own], self._play_baselines(10**6 + first, count, chooses=False)])


@cache
def noise(seed, salt):
    return float(np.random.default_rng([seed, salt]).uniform(-3, 3))


def value(module, seed):
    ratio = module.weight.item()
    return TEACHER * ratio + noise(seed, int(1e6 * abs(ratio)))


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Begin or resume a run in a world; returns its result, and the content of its certificate if it is complete."""
    written = {}
    monkeypatch.setattr(module_of_arena, "Games", WorldGames)
    monkeypatch.setattr(module_of_run, "save_student", lambda folder, *args, **kwargs: WorldGames.world.at("student"))
    monkeypatch.setattr(module_of_arena, "strip_of", lambda student, played, seed: None)
    monkeypatch.setattr(module_of_run.report, "write", lambda result, folder: written.update(all=result.to_dict()))
    monkeypatch.setattr(module_of_run.report, "write_page", lambda result, folder, strip: None)
    teacher = Teacher(make_q_module(), source="teacher")
    monkeypatch.setattr(module_of_run, "Teacher", lambda module, **kwargs: module)

    def begin(folder, world, *, resume=False, **options):
        monkeypatch.setattr(module_of_run, "running", world.running)
        monkeypatch.setattr(module_of_run, "measure", world.measure)
        monkeypatch.setattr(WorldGames, "world", world)
        asked = Shrink("cartpole", "CartPole-v1", **{"env_steps": 1_000, "episodes": 600, **options})
        progress = Progress(tmp_path / folder)
        state = progress.read() if resume else {"options": options_of(asked)}
        progress.folder.mkdir(exist_ok=True)
        played = SimpleNamespace(name="CartPole-v1", env="CartPole-v1", config_as_json=dict)
        arena = module_of_arena.InEnvironment(played, None, None)
        result = module_of_run.Run(teacher, arena, None, SIZES, {}, progress, state, asked)(
            command=f"rllib shrink {folder} {resume}", progress=False
        )
        if not result.is_complete:
            return result, None
        content = {**written.pop("all"), "seconds": None}
        return result, re.sub(r"rllib shrink [\w-]+ (True|False)", "", json.dumps(content))

    return begin


def kill_at(number):
    counter = count()

    def at(what):
        if next(counter) == number:
            raise KilledError

    return at


def interrupt_at(number):
    counter = count()

    def at(what):
        if next(counter) == number:
            signal.raise_signal(signal.SIGINT)

    return at


def test_bounds_that_teacher_or_random_policy_exceed_are_refused_before_training(go):
    happened = []
    with pytest.raises(ValueError, match="State wider bounds"):
        go("narrow", World(happened.append), bounds=(0.0, 99.0))
    assert set(happened) == {"play"}


def test_bounds_that_a_training_episode_exceeds_are_refused_in_the_iteration_that_saw_it(go):
    happened = []
    with pytest.raises(ValueError, match=r"training episode.*act at random.*got -10 to 5\. State wider bounds"):
        go("narrow", World(happened.append), bounds=(-5.0, 200.0))
    assert happened.count("train") == 1


def test_bounds_that_the_certificate_exceeds_leave_the_student(go, monkeypatch):
    def refuse(self, *args):
        raise ValueError("State wider bounds")

    happened = []
    monkeypatch.setattr(WorldGames, "certificate_episodes", refuse)
    with pytest.raises(ValueError, match="State wider bounds"):
        go("narrow", World(happened.append), bounds=(-10.0, 200.0))
    assert happened[-1] == "student"


def test_a_run_that_is_too_short_for_any_certificate_ends_before_training(go, monkeypatch):
    monkeypatch.setattr(Checks, "_why_too_short", lambda self, returns, seconds: "It is too short.")
    happened = []
    result, _ = go("run", World(happened.append))
    assert result.verdict == "Not certified. It is too short."
    assert set(happened) == {"play"}
    assert result.teacher_return == pytest.approx(TEACHER, abs=2.0)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_ctrl_c_ends_the_checks_of_the_teacher(go, tmp_path, number):
    result, content = go("run", World(interrupt_at(number)))
    assert (content, result.students) == (None, [])
    assert "--resume" in str(result)
    assert "checks" not in Progress(tmp_path / "run").read()
    assert go("run", World(), resume=True)[1] == num_happenings(go)[1]


def num_happenings(go):
    counter = count()
    _, content = go("whole", World(lambda what: next(counter)))
    return next(counter), content


def test_the_world_is_one_in_which_several_candidates_are_tested(go):
    content = json.loads(num_happenings(go)[1])
    tested = [one for one in content["candidates"] if one["certificate"]]
    assert len(tested) >= 2
    assert content["certified"] == tested[-1]["name"]


def left_when_killed(go, tmp_path):
    """Go through a run; return the folders that a kill leaves, one for each that differs from the one before."""
    folders, times = [], []

    def at(what):
        now = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")}
        if now not in times[-1:]:
            times.append(now)
            folders.append(f"at-{len(folders)}")
            shutil.copytree(tmp_path / "whole", tmp_path / folders[-1])

    _, content = go("whole", World(at))
    return folders, content


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_wherever_a_run_is_killed_it_ends_with_the_same_certificate(go, tmp_path, step):
    folders, expected = left_when_killed(go, tmp_path)
    assert len(folders) > 15
    for folder in folders[::step]:
        assert go(folder, World(), resume=True)[1] == expected, folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [7])
def test_wherever_a_run_is_interrupted_it_ends_with_the_same_certificate(go, step):
    number, expected = num_happenings(go)
    num_incomplete = 0
    for place in range(0, number - 1, step):
        result, content = go(f"at-{place}", World(interrupt_at(place)))
        if content is None:
            num_incomplete += 1
            assert result.checkpoint is None
            assert "--resume" in result.verdict
            content = go(f"at-{place}", World(), resume=True)[1]
        assert content == expected, place
    assert num_incomplete >= 2


def test_an_interrupted_run_names_its_folder_as_a_shell_takes_it(go):
    result, _ = go("my run", World(interrupt_at(7)))
    assert re.search(r"Continue it with --resume --out '/.*/my run'\.$", result.verdict)


def test_a_run_that_is_killed_again_and_again(go):
    _, expected = num_happenings(go)
    content, resume, kills = None, False, 0
    while content is None:
        try:
            content = go("often", World(kill_at(9)), resume=resume)[1]
        except KilledError:
            resume, kills = True, kills + 1
    assert content == expected
    assert kills > 5


def test_what_is_played_after_a_kill_in_a_test_are_the_next_episodes_alone(go, monkeypatch, tmp_path):
    tested = []

    def at(what):
        tested.append(what)
        if tested.count("test") == 4:
            raise KilledError

    with pytest.raises(KilledError):
        go("run", World(at))
    spans = []
    play = WorldGames.certificate_episodes

    def noted(self, student, first, count):
        spans.append((student.weight.item(), first))
        return play(self, student, first, count)

    monkeypatch.setattr(WorldGames, "certificate_episodes", noted)
    before = Progress(tmp_path / "run").read()
    go("run", World(), resume=True)
    num_begun = len(before["tests"][-1]["returns"][0])
    assert spans[0][1] == num_begun > 0
    assert len(set(spans)) == len(spans)  # no candidate plays an episode twice


def test_candidates_never_change_once_the_first_of_their_episodes_has_been_played(go, monkeypatch, tmp_path):
    def at(what):
        if what == "test":
            raise KilledError

    with pytest.raises(KilledError):
        go("run", World(at))
    before = Progress(tmp_path / "run").read()
    monkeypatch.setattr(module_of_run.Tournament, "candidates", lambda self: pytest.fail("chosen again"))
    monkeypatch.setattr(module_of_run.Tournament, "finish", lambda *args: pytest.fail("compared again"))
    result, _ = go("run", World(), resume=True)
    tested = [one for one in result.students if one.certificate is not None]
    snapshots = before["tournament"]["snapshots"]
    assert [one.name for one in tested] == [snapshots[i]["size"] for i in before["candidates"]][: len(tested)]
    count = len(before["candidates"])
    shares = [0.05 * 0.5 ** min(place + 1, count - 1) for place in range(count)]
    assert [one.certificate.alpha for one in tested] == pytest.approx(shares[: len(tested)])


def test_a_run_that_has_ended_is_not_resumed(go, tmp_path):
    go("run", World())
    assert not Progress(tmp_path / "run").exists
    assert not (tmp_path / "run" / "progress").exists()
    with pytest.raises(ValueError, match="no run was begun there"):
        Progress(tmp_path / "run").read()
    (tmp_path / "run" / "certificate.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its run has ended, see certificate\.json"):
        Progress(tmp_path / "run").read()


def test_the_certificate_is_written_before_an_environment_draws_pictures(go, monkeypatch, tmp_path):
    """One that ends the process in `render()` does so once."""

    def dies(student, played, seed):
        raise KilledError

    def noted(result, folder):
        (folder / CERTIFICATE).write_text("{}")
        write(result, folder)

    write = module_of_run.report.write
    monkeypatch.setattr(module_of_run.report, "write", noted)
    monkeypatch.setattr(module_of_arena, "strip_of", dies)
    with pytest.raises(KilledError):
        go("run", World())
    assert (tmp_path / "run" / CERTIFICATE).exists()
    assert go("run", World(), resume=True)[0].certified is not None
    assert not Progress(tmp_path / "run").exists


def test_time_that_was_spent_counts(go, tmp_path):
    def at(what):
        if what == "validate":
            raise KilledError

    with pytest.raises(KilledError):
        go("run", World(at))
    progress = Progress(tmp_path / "run")
    progress.write({**progress.read(), "seconds": 1e6})
    result, _ = go("run", World(), resume=True)
    assert result.facts["seconds"]["all"] >= 1e6


# --- Options ----------------------------------------------------------------------------------------------------------


def test_other_options_are_refused_with_both_values(tmp_path):
    asked = Shrink("cartpole", "CartPole-v1", minutes=5)
    began_with = json.loads(json.dumps(options_of(asked)))
    check_unchanged(tmp_path, began_with, options_of(asked))
    changes = {
        "keep": 0.9,
        "confidence": 0.9,
        "minutes": 7.0,
        "seed": 3,
        "restarts": 2,
        "episodes": 200,
        "bounds": (0.0, 500.0),
        "config": {"lr": 0.1},
        "env_config": {"x": 1},
        "sizes": {"a": {"fcnet_hiddens": [3]}},
        "env": "Acrobot-v1",
        "teacher": str(tmp_path),
        "minimize": "bytes",
    }
    for name, changed in changes.items():
        with pytest.raises(ValueError, match=f"{name} was .* and is ") as error:
            check_unchanged(tmp_path, began_with, options_of(replace(asked, **{name: changed})))
        assert repr(began_with[name]) in str(error.value)
    with pytest.raises(ValueError, match=r"version of ray was '0\.1' and is "):
        check_unchanged(tmp_path, {**began_with, "version of ray": "0.1"}, options_of(asked))


def test_every_option_is_compared():
    asked = Shrink("cartpole", "CartPole-v1", out="somewhere")
    assert set(vars(asked)) - set(options_of(asked)) == {"out"}


def test_a_teacher_with_other_weights_is_another_one():
    one, same, other = (Teacher(make_q_module(seed=seed)) for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    one.module.get_extra_state, one.module.set_extra_state = dict, id  # PyTorch saves it beside the weights
    assert fingerprint(one) == fingerprint(same)


# --- Files ------------------------------------------------------------------------------------------------------------


def test_copies_come_back_bit_by_bit(tmp_path):
    progress = Progress(tmp_path)
    modules = {name: make_q_module(seed=place) for place, name in enumerate(("a", "a__restart_1"))}
    progress.save_copies(100, modules)
    read = progress.load_copies(100, like={name: make_q_module(seed=9) for name in modules})
    for name, module in modules.items():
        assert all(torch.equal(value, read[name].state_dict()[key]) for key, value in module.state_dict().items())


def test_a_state_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "progress").mkdir()
    for text in ("{", "[]", "{}"):
        (tmp_path / "progress" / "state.json").write_text(text)
        with pytest.raises(ValueError, match="Start a new run"):
            Progress(tmp_path).read()


def test_a_state_that_was_changed_is_refused(tmp_path):
    progress, state = Progress(tmp_path), {"options": {"keep": 0.97}, "checks": [[1.5, float("inf")], [0.0, 1e-9]]}
    progress.write(state)
    assert progress.read() == state
    path = tmp_path / "progress" / "state.json"
    for change in ({"checks": 5}, {"options": {}}, {"tournament": []}, {"sha256": "0" * 64}, {"sha256": 1}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ValueError, match=r"state\.json' is not as this program wrote it: .*Start a new run"):
            progress.read()
        progress.write(state)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    progress, modules = Progress(tmp_path), {"a": make_q_module()}
    progress.save_copies(100, modules)
    path = tmp_path / "progress" / "copies-100.safetensors"
    whole = path.read_bytes()
    for content in (whole[:100], b"", whole[:-8]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot continue without '{path}': .*Start a new run"):
            progress.load_copies(100, like=modules)
    path.write_bytes(whole)
    for others in ({"a": make_q_module(), "b": make_q_module()}, {"b": make_q_module()}):
        with pytest.raises(ValueError, match=f"cannot continue without '{path}'"):
            progress.load_copies(100, like=others)
    with pytest.raises(ValueError, match=r"copies-200\.safetensors': it is missing\. Start a new run"):
        progress.load_copies(200, like=modules)
    with pytest.raises(ValueError, match=r"training-200': it is missing\. Start a new run"):
        progress.saved_checkpoint(200)


def test_older_checkpoints_are_deleted_once_a_newer_one_is_named(tmp_path):
    progress = Progress(tmp_path)
    for env_steps in (100, 200):
        progress.checkpoint(env_steps).mkdir(parents=True)
    progress.write({"training": {"env_steps": 200}})
    assert [path.name for path in (tmp_path / "progress").glob("training-*")] == ["training-200"]
    progress.write({"training": {"env_steps": 200}, "is_trained": True})
    assert not list((tmp_path / "progress").glob("training-*"))
