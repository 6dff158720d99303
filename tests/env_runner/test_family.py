"""A family of students: each must be what it would be alone."""

import numpy as np
import pytest
import ray
import torch

from rllib_kd import DistillDQN
from rllib_kd.learner import losses
from rllib_kd.networks.weights import weights_of
from tests.env_runner.runners import sample
from tests.learner.learners import RAW, config_of, fragment, make_learner

WIDTHS = {"s4": {"fcnet_hiddens": [4]}, "s16": {"fcnet_hiddens": [16]}, "linear": "linear"}


def family_config(cartpole_config, students=WIDTHS, **distillation):
    config = cartpole_config.copy(copy_frozen=False)
    return config.rl_module(model_config={"fcnet_activation": "relu"}).distillation(students=students, **distillation)


def q_of(learner, name, obs):
    with torch.no_grad():
        return learner.module[name].compute_q_values({"obs": torch.as_tensor(obs)})["qf_preds"]


@pytest.mark.parametrize("loss", [*losses.VALUE_LOSSES, *losses.POLICY_LOSSES])
@pytest.mark.parametrize("alpha", [0.0, pytest.param(0.6, marks=pytest.mark.slow)])
def test_a_member_learns_what_it_would_learn_alone(cluster, loss, alpha):
    """The same first weights, states and draws: the stacked step against RLlib's module by itself."""
    replay = {"alpha": alpha, "beta": 0.4}
    twins = {f"s{i}": {"fcnet_hiddens": [16]} for i in range(2)}
    config = config_of(loss).training(replay_buffer_config=replay)
    alone = make_learner(config)
    family = make_learner(config.copy(copy_frozen=False).distillation(students=twins))
    start = alone.module["default_policy"].get_state()
    for name in twins:
        with family.groups["default_policy"].students[name].unnoticed():  # as they were drawn
            family.module[name].set_state(start)
    family.groups["default_policy"].replay._generator.set_state(
        alone.groups["default_policy"].replay._generator.get_state()
    )
    for seed in range(3):
        data = ray.put(fragment(seed=seed))
        expected = alone.update([data], num_gradient_steps=20)["default_policy"]
        results = family.update([data], num_gradient_steps=20)
    for name in twins:
        torch.testing.assert_close(
            q_of(family, name, fragment()["obs"]),
            q_of(alone, "default_policy", fragment()["obs"]),
            rtol=3e-3,
            atol=3e-3,
        )
        for metric in ("kd_loss", "total_loss", "teacher_agreement", "q_regret", "kl_to_teacher"):
            assert results[name][metric].peek() == pytest.approx(expected[metric].peek(), rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("grad_clip", [None, 1e9])  # side by side, and one after the other
def test_labels_of_states_in_which_others_act_change_nothing(cluster, grad_clip):
    students = {
        "a": {"fcnet_hiddens": [8], "fcnet_activation": "tanh"},
        "b": {"fcnet_hiddens": []},
        "c": {"fcnet_hiddens": [16], "fcnet_activation": "relu"},
        "d": {"fcnet_hiddens": [4], "fcnet_activation": "tanh"},
    }
    config = config_of("mse", **RAW, students=students, own_states=True).training(grad_clip=grad_clip)
    acting = np.repeat(np.arange(1, 5, dtype=np.int32), 64)
    found = []
    for other in (None, *range(4)):
        columns = fragment() | {"acting": acting}
        if other is not None:
            columns["teacher_q"][acting == 1 + other] *= 0.0
        learner = make_learner(config)
        learner.update([ray.put(columns)], num_gradient_steps=20)
        found.append([q_of(learner, name, columns["obs"]) for name in students])
    first, *others = found
    for changed, outputs in enumerate(others):
        for place, (output, before) in enumerate(zip(outputs, first, strict=True)):
            difference = (output - before).abs().max()
            assert (difference > 0.01) == (place == changed), (place, changed, difference)


def test_samples_say_who_acts(cartpole_config, build):
    runner = build(family_config(cartpole_config, own_states=True)).env_runner
    names = (*runner.config.replay_columns, "actions")
    seen = set()
    for teacher_fraction, share in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        columns = [sample(runner, names, teacher_fraction=teacher_fraction)[0][0] for _ in range(8)]
        obs, acting, actions = (
            np.concatenate([part[name] for part in columns]) for name in ("obs", "acting", "actions")
        )
        assert (acting == 0).mean() == pytest.approx(share, abs=0.1)
        for place, name in enumerate(WIDTHS, 1):
            own = acting == place
            with torch.no_grad():
                q = runner.family[name].compute_q_values({"obs": torch.as_tensor(obs[own])})["qf_preds"]
            np.testing.assert_array_equal(actions[own], q.argmax(-1))
        seen |= set(acting.tolist())
    assert seen == {0, 1, 2, 3}


def test_by_default_linear_students_learn_from_their_own_states(cartpole_config, build):
    algo = build(family_config(cartpole_config))
    assert algo.config.own_states == "linear"
    acting = torch.tensor([0, 1, 2, 3])
    for name, student in algo.learner_group._learner.groups["default_policy"].students.items():
        expected = [2.0, 0.0, 0.0, 2.0] if name == "linear" else [1.0] * 4
        torch.testing.assert_close(student.own_states.weights(acting), torch.tensor([expected]))
    assert build(cartpole_config).config.own_states is None


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(own, marks=pytest.mark.slow) for own in ({"td_coeff": 0.5}, {"feature_coeff": 0.01}))],
)
def test_members_that_cannot_be_stacked_learn_one_after_the_other(cartpole_config, build, settings):
    config = family_config(cartpole_config, **settings)
    if not settings:
        config.training(grad_clip=1.0)
    algo = build(config)
    for _ in range(3):
        learners = algo.train()["learners"]
    assert all(np.isfinite(learners[name]["kd_loss"]) for name in WIDTHS)
    assert len(algo.learner_group._learner.groups["default_policy"].learners) == 3


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_family_trains_is_saved_and_resumed(cartpole_config, build, tmp_path, num_learners):
    algo = build(family_config(cartpole_config).learners(num_learners=num_learners))
    for _ in range(3):
        result = algo.train()
    students = result["distillation"]["students"]
    assert {name: own["student_params"] for name, own in students.items()} == {"s4": 30, "s16": 114, "linear": 10}
    for name, own in students.items():
        assert own["compression"] == pytest.approx(own["student_params"] / own["teacher_params"])
        assert algo.get_module(name) is not None
    with pytest.raises(ValueError, match=r"Name one of \['linear', 's16', 's4'\], got 'default_policy'"):
        algo.get_module()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    state = algo.learner_group._learner.get_state() if not num_learners else None
    algo.stop()
    resumed = DistillDQN.from_checkpoint(path)
    if state is not None:
        again = resumed.learner_group._learner.get_state()
        torch.testing.assert_close(again["distillation"], state["distillation"])
        for name, optimizer in state["optimizer"].items():
            torch.testing.assert_close(again["optimizer"][name]["state"]["state"], optimizer["state"]["state"])
    resumed.train()
    resumed.stop()


def test_each_member_is_evaluated_by_itself(cartpole_config, build):
    config = family_config(cartpole_config, {"good": {"fcnet_hiddens": [32]}, "idle": {"fcnet_hiddens": [32]}})
    config.distillation(teacher="cartpole", num_baseline_episodes=3).evaluation(evaluation_duration=3)
    algo = build(config)

    learner = algo.learner_group._learner
    for name, action in (("good", 1), ("idle", 0)):
        module = learner.module[name]
        for parameter in module.parameters():
            parameter.data.zero_()
        module.af.net.mlp[0].bias.data[action] = 1.0
    actions = {}
    for name in ("good", "idle"):
        algo.eval_env_runner_group.foreach_env_runner(lambda runner, name=name: runner.let_act(name))
        algo.eval_env_runner_group.sync_weights(from_worker_or_learner_group=algo.learner_group, inference_only=True)
        obs = {"obs": torch.zeros(1, 4)}
        actions[name] = algo.eval_env_runner_group.foreach_env_runner(
            lambda runner, obs=obs: int(runner.module.forward_inference(obs)["actions"][0])
        )
    assert actions == {"good": [1], "idle": [0]}
    evaluation = algo.evaluate()
    results = algo.train()["distillation"]
    for name in ("good", "idle"):
        returns = evaluation["students"][name]["env_runners"]["episode_return_mean"]
        own = results["students"][name]
        expected = (returns - own["random_return"]) / (own["teacher_return"] - own["random_return"])
        assert own["return_ratio"] == pytest.approx(expected)
    assert results["return_ratio"] == min(own["return_ratio"] for own in results["students"].values())


def test_compressions_and_model_configs_mix(cartpole_config, build):
    students = {"half": {"compression": 0.5}, "s4": {"fcnet_hiddens": [4]}, "deep": {"fcnet_hiddens": [4, 4]}}
    algo = build(family_config(cartpole_config, students))
    sizes = {name: own["student_params"] for name, own in algo.train()["distillation"]["students"].items()}
    assert sizes["s4"] == 30
    assert sizes["deep"] == 50
    assert 0.3 < sizes["half"] / 1282 <= 0.5


@pytest.mark.parametrize(
    ("students", "message"),
    [
        ({"a": {"fcnet_hidden": [4]}}, "has no setting 'fcnet_hidden'. Did you mean 'fcnet_hiddens'"),
        ({"a": {}}, "must have either `compression`, `tree` or widths"),
        ({"a": {"compression": 0.1, "fcnet_hiddens": [4]}}, "must have either `compression`, `tree` or widths"),
        ({"a": {"compression": 2}}, r"must be in \(0, 1\]"),
        ({"a": "rusu-net4"}, "Unknown student `students"),
        ({"a/b": {"fcnet_hiddens": [4]}}, "becomes a folder's name"),
        ({"a" * 201: {"fcnet_hiddens": [4]}}, "at most 200 bytes, got 201: 'aaa"),
        ({"metadata.json": {"fcnet_hiddens": [4]}}, "RLlib itself uses 'metadata.json'"),
        ({"module_state.pkl": {"fcnet_hiddens": [4]}}, "RLlib itself uses"),
        ({"__all_modules__": {"fcnet_hiddens": [4]}}, "RLlib itself uses"),
        ({"a": 16}, "must be a model config such as"),
    ],
)
def test_what_describes_no_family_is_refused(cartpole_config, students, message):
    with pytest.raises(ValueError, match=message):
        family_config(cartpole_config, students).validate()


@pytest.mark.parametrize("other", [{"compression": 0.1}, {"student": "rusu-net3"}])
def test_one_student_or_a_family(cartpole_config, other):
    with pytest.raises(ValueError, match=f"Both `students` and `{next(iter(other))}` set what is trained"):
        family_config(cartpole_config, **other).validate()


def test_preferred_students_act_more_often_and_after_a_restore_too(cartpole_config, build, tmp_path):
    config = family_config(cartpole_config)
    algo, again = build(config), build(config)
    with pytest.raises(ValueError, match=r"There is no student 's5'\. The family has s4, s16, linear\."):
        algo.prefer_students(["s5"])
    algo.prefer_students(["linear"])
    algo.train()
    algo.save_to_path(tmp_path)
    again.restore_from_path(tmp_path)
    again.train()
    for one in (algo, again):
        assert np.bincount(one.env_runner._turns._order).tolist() == [1, 1, 4]


def test_resting_students_neither_learn_nor_act_and_after_a_restore_neither(cartpole_config, build, tmp_path):
    config = family_config(cartpole_config)
    algo, again = build(config), build(config)
    with pytest.raises(ValueError, match="There is no student 's5'"):
        algo.rest_copies(["s5"])
    with pytest.raises(ValueError, match="Expected a list of names, got 's4'"):
        algo.rest_copies("s4")
    with pytest.raises(ValueError, match="All of the family would rest"):
        algo.rest_copies(list(WIDTHS))
    algo.train()
    algo.rest_copies(["s16"])
    algo.save_to_path(tmp_path)
    again.restore_from_path(tmp_path)
    for one in (algo, again):
        before = {name: weights_of(module) for name, module in one.get_copies().items()}
        one.train()
        after = {name: weights_of(module) for name, module in one.get_copies().items()}
        changed = {name for name in WIDTHS if any((after[name][key] != old).any() for key, old in before[name].items())}
        assert changed == {"s4", "linear"}
        assert sorted(one.env_runner._turns._order) == [0, 2]
    algo.rest_copies([])
    algo.train()
    assert sorted(algo.env_runner._turns._order) == [0, 1, 2]
