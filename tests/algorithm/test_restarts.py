"""Restarts: copies of a student side by side, of which validation episodes choose the best."""

import numpy as np
import pytest
import ray
import torch

from rllib_kd import DistillDQN, DistillDQNConfig, Teacher, load_teacher
from rllib_kd.algorithm.restarts import KeptCopy, Players, Restarts, _by_regret
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.halving import halve, num_played
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.seeds import VALIDATION_SEED
from rllib_kd.evaluation.validation import Validation, play_validation
from rllib_kd.networks.weights import weights_of
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.students.restarts import REGRET_FACTORS, by_student, is_named, names_of
from tests.conftest import CARTPOLE_OBS, make_q_module
from tests.learner.learners import RAW, config_of, fragment, make_learner
from tests.networks.test_recurrent import recurrent

COPIES = names_of("default_policy", 3)


def test_names():
    assert names_of("s8", 3) == ["s8", "s8__restart_1", "s8__restart_2"]
    assert by_student([*names_of("a", 2), *names_of("b", 1)]) == {"a": ["a", "a__restart_1"], "b": ["b"]}
    assert [is_named(name) for name in names_of("s8", 3)] == [True, False, False]


def test_each_copy_weighs_regret_as_its_place_says(cluster):
    """A stack of copies, beside single students with one of the factors each."""
    first, many = fragment(), {"restarts": len(REGRET_FACTORS)}
    stacked = make_learner(config_of(**many))
    stacked.update([ray.put(first)], num_gradient_steps=3)
    for factor, name in zip(REGRET_FACTORS, names_of("default_policy", len(REGRET_FACTORS)), strict=True):
        alone = make_learner(config_of(regret_coeff=factor, **many))
        alone.update([ray.put(first)], num_gradient_steps=3)
        for key, value in alone.module[name].state_dict().items():
            torch.testing.assert_close(stacked.module[name].state_dict()[key], value, rtol=0, atol=1e-6)


def test_no_spread_where_there_is_nothing_to_spread():
    of_last = names_of("default_policy", 3)[-1]
    assert config_of().regret_coeff_of(of_last) == REGRET_FACTORS[2] == 10.0
    assert config_of(regret_coeff=2.0).regret_coeff_of(of_last) == 2.0
    assert config_of("mse").regret_coeff_of(of_last) == 0.0
    assert config_of(td_coeff=1.0).regret_coeff_of(of_last) == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "kl"},
        {"loss": "mse"},
        {"loss": "mse", "td_coeff": 0.5},
        {"loss": "kl", "feature_coeff": 0.1},
    ],
    ids=["stacked", "stacked, on a scale", "with TD", "with features"],
)
def test_weights_that_a_copy_has_for_a_while_are_not_learned_from(cluster, settings):
    """Two Learners see the same; in one of them a copy has another's weights between two updates."""
    names = ("obs", "teacher_q", "actions", "rewards", "terminateds", "truncateds", "valid")
    columns = fragment(names=names)
    if "feature_coeff" in settings:
        columns["teacher_features"] = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    one, other = (make_learner(config_of(restarts=3, **settings)) for _ in range(2))
    for learner in (one, other):
        learner.update([ray.put(columns)], num_gradient_steps=5)
    acts = weights_of(other.module["default_policy__restart_2"], ["encoder.net.mlp.0.weight"])
    had = other.give_weights({"default_policy": acts})
    np.testing.assert_array_equal(first_layer(other.module["default_policy"]), acts["encoder.net.mlp.0.weight"])
    other.give_weights(had)
    for learner in (one, other):
        learner.update([], num_gradient_steps=5)
    for name, module in other.module.items():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, one.module[name].state_dict()[key], rtol=0, atol=0)


def test_regret_ranks_copies_by_what_they_choose(cluster):
    learner = make_learner(config_of(restarts=3, **RAW))
    assert all(np.isnan(regret) for regret in learner.q_regret().values())  # there are no states yet
    columns = fragment()
    learner.update([ray.put(columns)], num_gradient_steps=1)
    valid = columns["valid"] if "valid" in columns else np.ones(256, dtype=bool)
    for name, regret in learner.q_regret().items():
        q = learner.module[name].compute_q_values({"obs": torch.as_tensor(columns["obs"])})["qf_preds"]
        chosen = columns["teacher_q"][np.arange(256), q.argmax(-1)]
        assert regret == pytest.approx((columns["teacher_q"].max(-1) - chosen)[valid].mean(), rel=1e-4)


class TestValidation:
    """Against one episode at a time."""

    def test_all_play_the_same_episodes(self):
        students = {name: make_q_module(seed=seed) for seed, name in enumerate(COPIES)}
        make_env = env_maker("CartPole-v1")
        # 90 episodes are more than one vector env has.
        played = play_validation(make_env, students, ObservationPipeline(CARTPOLE_OBS), 30)
        again = play_validation(make_env, {"alone": students[COPIES[1]]}, ObservationPipeline(CARTPOLE_OBS), 30)
        assert again.returns["alone"] == played.returns[COPIES[1]]
        assert played.env_steps == sum(map(sum, played.returns.values()))  # a reward of 1 each
        assert played.best(COPIES) == [max(COPIES, key=lambda name: np.mean(played.returns[name]))]

    def test_each_student_remembers_its_own_episodes(self):
        """Beside one at a time, by the policy that `compare` plays with."""
        students = {name: recurrent((4,), seed=seed, num_actions=2) for seed, name in enumerate(COPIES)}
        for module in students.values():
            for parameter in module.parameters():  # what they do depends on what they see
                torch.nn.init.normal_(parameter) if parameter.ndim == 2 else torch.nn.init.zeros_(parameter)
        make_env = env_maker("CartPole-v1")
        played = play_validation(make_env, students, ObservationPipeline(CARTPOLE_OBS), 30)
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + 30)
        for name, module in students.items():
            assert played.returns[name] == play(make_env, GreedyQ(Teacher(module)), seeds)[0]
        assert len({tuple(returns) for returns in played.returns.values()}) == 3

    def test_a_teacher_is_found_among_students_that_know_nothing(self):
        students = {name: make_q_module(seed=seed) for seed, name in enumerate(COPIES)}
        students[COPIES[2]] = load_teacher("cartpole").module
        played = play_validation(env_maker("CartPole-v1"), students, ObservationPipeline(CARTPOLE_OBS), 3)
        assert played.best(COPIES) == [COPIES[2]]
        assert played.returns[COPIES[2]] == [500.0] * 3


def small_config(**distillation) -> DistillDQNConfig:
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .training(num_steps_sampled_before_learning_starts=0)
        .reporting(min_sample_timesteps_per_iteration=1_000)
        .distillation(teacher="cartpole", restarts=5, num_validation_episodes=8, num_baseline_episodes=2)
        .distillation(**distillation)
        .evaluation(evaluation_duration=2)
        .debugging(seed=0)
    )


@pytest.fixture(scope="module")
def trained(cluster):
    algo = small_config().build_algo()
    algo.train()
    yield algo
    algo.stop()


def learned(algo):
    return algo.learner_group.get_state()["learner"]["rl_module"]


def same_weights(one, other):
    assert one.keys() == other.keys()
    for name, weights in one.items():
        for key, value in weights.items():
            np.testing.assert_array_equal(other[name][key], value)


def fail(*_, **__):
    raise EnvFailedError("The environment has raised.")


def first_layer(module):
    return module.state_dict()["encoder.net.mlp.0.weight"].clone()


def test_the_best_copy_is_what_is_given_and_saved_and_training_goes_on_as_without(trained, tmp_path):
    result = trained.train()["distillation"]
    assert result["student_params"] == 30  # one copy's
    before = learned(trained)
    chosen = first_layer(trained.get_module())
    path = trained.save_to_path(str(tmp_path / "saved"))
    same_weights(before, learned(trained))  # neither has changed the run
    own = list(names_of("default_policy", 5))
    assert sum(np.array_equal(chosen, before[name]["encoder.net.mlp.0.weight"]) for name in own) == 1

    trained_on = trained.train()["distillation"]["validation"]
    saved = load_teacher(path).module
    np.testing.assert_array_equal(chosen, first_layer(saved))
    played = play_validation(env_maker("CartPole-v1"), {"alone": saved}, ObservationPipeline(CARTPOLE_OBS), 8)
    assert np.mean(played.returns["alone"]) == trained_on["episode_return_mean"]["default_policy"]

    restored = DistillDQN.from_checkpoint(path)
    try:
        np.testing.assert_array_equal(chosen, first_layer(restored.get_module()))
        assert restored.train()["distillation"]["validation"] == trained_on  # nothing was played again
        same_weights(learned(trained), learned(restored))
    finally:
        restored.stop()


@pytest.mark.slow
@pytest.mark.parametrize("env_steps", [1_000, 2_000], ids=["of an earlier time", "of now"])
def test_a_chosen_snapshot_is_what_is_evaluated_given_saved_and_restored(trained, tmp_path, monkeypatch, env_steps):
    trained.evaluate()  # RLlib does not send these weights to the EnvRunners of evaluations again
    before = learned(trained)
    copies = trained.get_copies()
    chosen = KeptCopy.of("default_policy__restart_3", copies["default_policy__restart_3"], env_steps)
    if env_steps < 2_000:
        chosen = chosen._replace(weights={name: value + 0.25 for name, value in chosen.weights.items()})
    monkeypatch.setattr(trained._restarts, "_chosen", {"default_policy": chosen})
    monkeypatch.setattr(trained._restarts, "_chosen_at", trained._replay_ratio.num_updates)
    expected = chosen.weights["encoder.net.mlp.0.weight"]
    np.testing.assert_array_equal(first_layer(trained.get_module()), expected)
    trained.evaluate()
    np.testing.assert_array_equal(first_layer(trained.eval_env_runner.module), expected)
    path = trained.save_to_path(str(tmp_path / "saved"))
    np.testing.assert_array_equal(first_layer(load_teacher(path).module), expected)
    same_weights(before, learned(trained))
    trained.restore_from_path(path)
    same_weights(before, learned(trained))
    trained.evaluate()
    np.testing.assert_array_equal(first_layer(trained.eval_env_runner.module), expected)
    np.testing.assert_array_equal(first_layer(trained.get_module()), expected)


class TestLooks:
    """The return of a module is its first weight: nothing is played."""

    @pytest.fixture
    def played(self, monkeypatch):
        played = []

        def look(make_env, modules, pipeline, count, *, first_episode):
            played.append((dict.fromkeys(modules, count), first_episode))
            returns = {name: [float(first_layer(module)[0, 0])] * count for name, module in modules.items()}
            return Validation(returns, count * len(modules), 0.5)

        monkeypatch.setattr("rllib_kd.algorithm.restarts.play_validation", look)
        monkeypatch.setattr("rllib_kd.algorithm.restarts.ask_learners", lambda *_: [dict.fromkeys(COPIES, 0.0)])
        return played

    def players(self, *returns):
        copies = {name: make_q_module() for name in COPIES}
        for module, value in zip(copies.values(), returns, strict=True):
            module.state_dict()["encoder.net.mlp.0.weight"].fill_(value)
        return Players(copies, lambda: None, None)

    def choice(self, restarts, players, env_steps=200_000):
        restarts.choose(players, None, num_updates=5, env_steps=env_steps)
        return restarts.results()["chosen_at_env_steps"]["default_policy"], restarts.weights("default_policy")

    def test_the_best_of_all_times_is_chosen(self, played):
        restarts = Restarts(3, 64)
        for env_steps, best in ((20_000, 1.0), (30_000, 7.0), (45_000, 6.0)):
            restarts.look(self.players(0.0, best, -1.0), env_steps)
        assert {count for names, _ in played for count in names.values()} == {4, 8}  # 16 episodes at most
        players = self.players(2.0, 3.0, 4.0)
        assert self.choice(restarts, players)[0] == 30_000
        assert self.choice(restarts, self.players(2.0, 3.0, 7.0))[0] == 200_000  # of equal ones the later one
        assert np.all(first_layer(players.copies[COPIES[0]]).numpy() == 2.0)  # they stay as they are

    def test_snapshots_do_not_play_their_first_episodes_again(self, played):
        restarts = Restarts(3, 64)
        restarts.look(self.players(0.0, 1.0, 2.0), 20_000)
        played.clear()
        self.choice(restarts, self.players(0.0, 1.0, 1.5))
        first_round, *later = played
        assert first_round == (dict.fromkeys(COPIES, 16), 0)
        assert all("default_policy__restart_2 at 20000" in names for names, _ in later)

    def test_so_many_are_kept_and_none_changes_with_its_module(self, played):
        restarts, players = Restarts(3, 64), self.players(0.0, 0.0, 0.0)
        for number in range(1, 7):
            players.copies[COPIES[1]].state_dict()["encoder.net.mlp.0.weight"].fill_(number)
            restarts.look(players, 20_000 * number)
        assert [one.returns[0] for one in restarts._kept["default_policy"]] == [6.0, 5.0, 4.0, 3.0]

    def test_a_tree_that_was_not_regrown_is_kept_once_and_is_no_snapshot_of_another_time(self, played):
        restarts, players = Restarts(3, 64), self.players(1.0, 3.0, 2.0)
        for env_steps in (20_000, 30_000, 45_000):
            restarts.look(players, env_steps)
        assert [one.copy for one in restarts._kept["default_policy"]] == [COPIES[1], COPIES[2], COPIES[0]]
        played.clear()
        assert self.choice(restarts, players)[0] == 200_000
        assert all(names.keys() <= set(COPIES) for names, _ in played)

    def test_looks_are_rare_and_cost_no_more_than_they_may(self, played):
        restarts = Restarts(16, 64)
        assert num_played(16, 16) == 128
        assert not restarts.is_look_due(19_999, 10.0)
        assert restarts.is_look_due(20_000, 10.0)
        assert not restarts.is_look_due(20_000, 400.0)  # 51,200 env steps to play
        assert restarts.is_look_due(26_000, 400.0)
        assert not Restarts(16, 64, num_students=10).is_look_due(20_000, 40.0)  # the same
        assert Restarts(16, 64, num_students=10).is_look_due(26_000, 40.0)
        assert not restarts.is_look_due(10**9, np.nan)
        restarts.look(self.players(0.0, 1.0, 2.0), 40_000)
        assert not restarts.is_look_due(59_999, 10.0)
        assert restarts.is_look_due(60_000, 10.0)
        assert not Restarts(1, 64).is_look_due(10**9, 1.0)
        assert not Restarts(16, 0).is_look_due(10**9, 1.0)

    def test_looks_are_restored(self, played):
        one, other = Restarts(3, 64), Restarts(3, 64)
        one.look(self.players(0.0, 9.0, 2.0), 20_000)
        self.choice(one, self.players(0.0, 1.0, 1.5))
        other.set_state(one.get_state())
        assert other.results() == one.results()
        assert not other.is_look_due(29_999, 10.0)
        assert self.choice(other, self.players(0.0, 1.0, 1.5))[0] == 20_000

    def test_what_fails_or_has_no_environment_keeps_nothing(self, played, monkeypatch, caplog):
        restarts = Restarts(3, 64)
        restarts.look(self.players(0.0, 9.0, 2.0)._replace(make_env=None), 20_000)
        monkeypatch.setattr("rllib_kd.algorithm.restarts.play_validation", fail)
        restarts.look(self.players(0.0, 9.0, 2.0), 20_000)
        assert "no copies of 20000 env steps are kept" in caplog.text
        assert not restarts._kept


@pytest.mark.slow
def test_a_run_looks_at_its_copies_and_what_is_saved_or_cached_does_not_matter(cluster, tmp_path, monkeypatch):
    """The second run is saved, and has the baselines that the first one had to play on its EnvRunner."""
    monkeypatch.setattr("rllib_kd.algorithm.restarts._FIRST_LOOK", 1_000)
    monkeypatch.setattr("rllib_kd.algorithm.restarts._MOST_PLAYED", 1_000.0)
    given = []
    for saves in (False, True):
        config = small_config(restarts=3).env_runners(num_envs_per_env_runner=2)  # so that episodes end early
        algo = config.build_algo()
        try:
            for number in range(3):
                algo.train()
                if saves:
                    algo.save_to_path(str(tmp_path / str(number)))
            assert algo._restarts._kept["default_policy"]
            given.append({"student": weights_of(algo.get_module())})
        finally:
            algo.stop()
    same_weights(*given)


@pytest.mark.slow
def test_validation_before_an_evaluation_plays_what_the_learner_has(cluster, monkeypatch):
    """Also if other processes sample: this one gets the student at the end of an iteration, after the evaluation."""
    config = small_config(restarts=2).env_runners(num_env_runners=1).evaluation(evaluation_interval=1)
    algo = config.build_algo()
    played = []

    def look(make_env, students, *others, **more):
        played.append({name: first_layer(module) for name, module in students.items()})
        return play_validation(make_env, students, *others, **more)

    monkeypatch.setattr("rllib_kd.algorithm.restarts.play_validation", look)
    try:
        algo.train()
        while not played:
            algo.train()
        for name, own in learned(algo).items():
            np.testing.assert_array_equal(played[-1][name], own["encoder.net.mlp.0.weight"])
    finally:
        algo.stop()


def test_copies_that_cannot_be_validated_are_saved_all_the_same(trained, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rllib_kd.algorithm.restarts.play_validation", fail)
    monkeypatch.setattr(trained._restarts, "_chosen_at", -1)
    path = trained.save_to_path(str(tmp_path / "saved"))
    assert "Validation failed" in caplog.text
    assert "The environment has raised." in caplog.text
    regrets = trained.learner_group._learner.q_regret()
    least = learned(trained)[min(regrets, key=regrets.get)]
    np.testing.assert_array_equal(first_layer(load_teacher(path).module), least["encoder.net.mlp.0.weight"])


@pytest.mark.parametrize(
    ("regrets", "expected"),
    [
        ({"a": 5.0, "b": np.nan, "c": 1.0, "d": np.nan, "e": 0.0}, "ecabd"),
        (dict.fromkeys("abcde", np.nan), "abcde"),  # without labels
    ],
    ids=["some", "none"],
)
def test_of_equal_copies_the_one_with_the_least_regret_counts(regrets, expected):
    assert _by_regret("abcde", regrets) == list(expected)
    played = Validation({name: [1.0] for name in "abcde"}, 5, 0.0)
    assert played.best(_by_regret("abcde", regrets)) == [expected[0]]


@pytest.mark.parametrize("num_episodes", [1, 2, 24])
def test_the_better_half_plays_on(num_episodes):
    """Copies of two students: x0 to x15, whose returns are their numbers, and y0 and y1, too few to be left out."""
    rounds = []

    def play(names, first, count):
        rounds.append((len(names), first, count))
        return Validation({name: [float(name[1:])] * count for name in names}, count * len(names), 0.5)

    copies = {"x": [f"x{number}" for number in range(16)], "y": ["y0", "y1"]}
    played = halve(copies, num_episodes, play)
    expected = {1: [(18, 0, 1)], 2: [(18, 0, 1), (6, 1, 1)], 24: [(18, 0, 6), (10, 6, 6), (6, 12, 12)]}
    assert rounds == expected[num_episodes]
    assert {name: played.best(names)[0] for name, names in copies.items()} == {"x": "x15", "y": "y1"}
    assert len(played.returns["x15"]) == len(played.returns["y0"]) == num_episodes
    assert played.env_steps == sum(players * count for players, _, count in rounds)
    assert played.seconds == 0.5 * len(rounds)
    assert num_played(16, num_episodes) + num_played(2, num_episodes) == played.env_steps


def test_another_number_of_copies_is_refused_before_anything_is_restored(trained, tmp_path):
    path = trained.save_to_path(str(tmp_path / "saved"))
    other = small_config(restarts=1).build_algo()
    try:
        before = learned(other)
        with pytest.raises(ValueError, match="restarts=5, but this run has restarts=1"):
            other.restore_from_path(path)
        same_weights(before, learned(other))
    finally:
        other.stop()


def test_nothing_is_played_twice_without_learning(trained, monkeypatch):
    trained.get_module()
    monkeypatch.setattr("rllib_kd.algorithm.restarts.play_validation", pytest.fail)
    trained.get_module()
    assert "default_policy__restart_1" not in trained.evaluate()  # evaluation is of the student alone


@pytest.mark.slow
def test_each_of_a_family_has_copies_of_its_own(cluster):
    algo = small_config(restarts=2, students={"s4": {"fcnet_hiddens": [4]}, "linear": "linear"}).build_algo()
    try:
        result = algo.train()["distillation"]
        assert set(result["students"]) == {"s4", "linear"}
        algo.get_module("s4")
        assert set(algo._restarts.results()["episode_return_mean"]) == {"s4", "linear"}
        with pytest.raises(ValueError, match="Name one of"):
            algo.get_module("s4__restart_1")
    finally:
        algo.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 0}, "restarts"),
        ({"restarts": 2.5}, "restarts"),
        ({"num_validation_episodes": -1}, "num_validation_episodes"),
        ({"init": "teacher"}, "would be equal"),
        ({"students": {"a__restart_1": {"fcnet_hiddens": [4]}}}, "Choose another name"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_config(**settings).validate()


def test_copies_of_several_policies_are_refused():
    config = small_config(teacher={"a": "cartpole"}).multi_agent(policies={"a"}, policy_mapping_fn=lambda *_: "a")
    with pytest.raises(ValueError, match="single-agent"):
        config.validate()


def test_without_validation_episodes_the_copies_are_not_compared():
    assert Restarts(4, 1).is_choice_due(5)
    assert not Restarts(4, 0).is_choice_due(5)
    assert not Restarts(4, 1).is_choice_due(0)  # nothing was learned
    assert not Restarts(1, 1).is_choice_due(5)
    assert small_config(num_validation_episodes=0).validate() is None


def test_a_checkpoint_without_snapshots_is_refused():
    state = Restarts(4, 64).get_state()
    del state["kept"]
    with pytest.raises(ValueError, match="development version"):
        Restarts(4, 64).check(state)
    Restarts(1, 64).set_state({"num_copies": 1})
