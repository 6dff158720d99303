"""Students that are trees: refused where they cannot be, trained, saved, resumed, compared and exported."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd import DistillDQN, DistillDQNConfig, compare, load_teacher
from rllib_kd.algorithm.checks.trees import check_trees
from rllib_kd.algorithm.preflight import check_environment
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.evaluation.comparing import evaluate
from tests.algorithm.resumable import resumable_config, weights
from tests.algorithm.weights import assert_equal_weights

TREE = {"tree": {"max_leaf_nodes": 4}}


def tree_config(**distillation) -> DistillDQNConfig:
    return resumable_config().rl_module(model_config={}).distillation(student=TREE, **distillation)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"td_coeff": 0.5}, "`td_coeff`=0.5 is not supported for trees. TD needs gradients"),
        ({"init": "teacher", "restarts": 1}, "`init`='teacher' is not supported for trees. A tree takes no units"),
        ({"feature_coeff": 0.1}, "`feature_coeff`=0.1 is not supported for trees. A tree has no hidden features"),
        ({"teacher": None, "td_coeff": 1.0}, "A tree learns from a teacher's labels alone"),
        ({"gap_weighting": True}, "`gap_weighting`=True is not supported for trees. .* the tree's own weighting"),
        ({"student": {"tree": {"max_leaf_nodes": 0}}}, "`max_leaf_nodes` of `student`"),
        ({"student": {"tree": {}, "fcnet_hiddens": [4]}}, "must have either `compression`, `tree` or widths"),
        ({"student": {"tree": {}, "compression": 0.1}}, "must have either `compression`, `tree` or widths"),
        ({"student": None, "students": {"a": {"tree": {"leaves": 3}}}}, "has no setting 'leaves'"),
    ],
)
def test_settings_that_a_tree_cannot_have_are_refused(change, reason):
    config = tree_config()
    with pytest.raises(ValueError, match=reason):
        config.distillation(**change).validate()


@pytest.mark.parametrize("other", [{"fcnet_hiddens": [4]}, {"compression": 0.5}, {"student": "linear"}])
def test_a_tree_in_a_model_config_is_the_whole_shape(other):
    config = tree_config().distillation(student=other.get("student"), compression=other.get("compression"))
    config.rl_module(model_config=TREE | {name: other[name] for name in other if name == "fcnet_hiddens"})
    with pytest.raises(ValueError, match="has a tree, but"):
        config.validate()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.training(num_atoms=11), "no return distributions. Set num_atoms=1"),
        (lambda c: c.learners(num_learners=2), "Each Learner would grow its own tree"),
        (lambda c: c.training(replay_buffer_config={"alpha": 0.6}), r"\['alpha'\]`=0.6 is not supported for trees"),
        (lambda c: c.reporting(min_train_timesteps_per_iteration=5), "an iteration would not end. Set min_sample_time"),
    ],
)
def test_settings_of_rllib_that_a_tree_cannot_have_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        change(tree_config()).validate()


def test_priorities_are_for_networks_beside_a_tree():
    students = {"a": TREE, "b": {"fcnet_hiddens": [4]}}
    config = tree_config().training(replay_buffer_config={"alpha": 0.6})
    config.distillation(student=None, students=students).validate()
    tree_config().training(replay_buffer_config={"alpha": 0.0, "beta": 0.4}).validate()


def test_several_agents_are_refused():
    config = DistillDQNConfig().rl_module(model_config=TREE).distillation(teacher={"a": "cartpole"})
    config.multi_agent(policies={"a"}, policy_mapping_fn=lambda *_, **__: "a")
    with pytest.raises(ValueError, match="Trees are supported in single-agent settings only"):
        check_trees(config)


def test_images_are_refused_before_anything_starts():
    spaces = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), gym.spaces.Discrete(2)
    with pytest.raises(ValueError, match="Images are not supported: wrap the environment"):
        check_environment(tree_config(), spaces)


def test_copies_are_the_default_of_trees_alone():
    assert tree_config().num_copies == DistillDQNConfig.TREE_COPIES
    assert tree_config(restarts=1).num_copies == 1
    both = {"a": TREE, "b": {"fcnet_hiddens": [4]}}
    assert tree_config().distillation(student=None, students=both).num_copies == 1
    assert tree_config().distillation(student=None, students={"a": TREE, "b": TREE}).num_copies > 1
    assert resumable_config().num_copies == 1


def short(config):
    return config.training(replay_buffer_config={"capacity": 5_000}).reporting(min_sample_timesteps_per_iteration=512)


@pytest.fixture(scope="module")
def saved(cluster, tmp_path_factory):
    """A run of a few regrowths, and its checkpoint."""
    config = short(tree_config(restarts=4, num_validation_episodes=4)).evaluation(evaluation_duration=2)
    algo = config.build_algo()
    for _ in range(5):
        result = algo.train()
    path = algo.save_to_path(str(tmp_path_factory.mktemp("tree") / "checkpoint"))
    yield algo, path, result
    algo.stop()


def test_a_run_grows_trees_and_reports_their_size(saved):
    algo, _, result = saved
    figures = result["distillation"]
    assert figures["num_regrowths_lifetime"] >= 3
    assert figures["num_gradient_steps_lifetime"] == 0
    assert 2 <= figures["num_leaves"] <= 4
    assert figures["student_params"] == algo.learner_group._learner.module["default_policy"].num_parameters
    assert figures["depth"] >= 1
    assert figures["teacher_params"] == 67_843


def test_the_best_copy_is_the_student_and_is_in_the_checkpoint(saved):
    algo, path, _ = saved
    chosen = algo.get_module().tree
    loaded = load_teacher(path).module.tree
    assert np.array_equal(loaded.threshold, chosen.threshold)
    assert np.array_equal(loaded.values, chosen.values)
    assert algo._restarts.results()["episode_return_mean"]


def test_rllibs_evaluation_plays_the_tree(saved):
    algo, _, _ = saved
    results = algo.evaluate()["env_runners"]
    assert results["num_episodes"] == algo.config.evaluation_duration
    assert results["episode_return_mean"] > 9


def test_a_resumed_run_goes_on_bit_by_bit(saved):
    algo, path, _ = saved
    restored = DistillDQN.from_checkpoint(path)
    try:
        assert_equal_weights(weights(restored), weights(algo))
        for each in (algo, restored):
            for _ in range(6):
                result = each.train()
        assert result["distillation"]["num_regrowths_lifetime"] > 4
        assert_equal_weights(weights(restored), weights(algo))
    finally:
        restored.stop()


def test_a_checkpoint_is_compared_evaluated_and_exported(saved, tmp_path):
    from typer.testing import CliRunner

    from rllib_kd.cli import play  # noqa: F401  # its commands
    from rllib_kd.cli.app import app

    _, path, _ = saved
    comparison = compare("cartpole", path, num_episodes=4)
    assert comparison.student.num_parameters < 100
    assert evaluate(path, num_episodes=2).num_parameters == comparison.student.num_parameters
    for name in ("tree.onnx", "tree.py"):
        result = CliRunner().invoke(app, ["export", path, "--out", str(tmp_path / name), "--episodes", "2"])
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).exists()


def test_a_checkpoint_whose_tree_has_a_cycle_is_refused(saved, tmp_path):
    import pickle
    import shutil

    _, path, _ = saved
    shutil.copytree(f"{path}/learner_group/learner/rl_module/default_policy", tmp_path / "module")
    file = tmp_path / "module" / "module_state.pkl"
    state = pickle.loads(file.read_bytes())
    state["left"] = np.zeros_like(state["left"])
    file.write_bytes(pickle.dumps(state))
    with pytest.raises(CheckpointError, match="cycle"):
        load_teacher(str(tmp_path / "module"))


@pytest.mark.slow
def test_remote_env_runners_act_by_the_trees(cluster):
    algo = short(tree_config(restarts=2, max_staleness=0)).env_runners(num_env_runners=1).build_algo()
    try:
        for _ in range(4):
            result = algo.train()
        (leaves,) = algo.env_runner_group.foreach_env_runner(
            lambda env_runner: [module.tree.num_leaves for module in env_runner.family.values()],
            local_env_runner=False,
        )
    finally:
        algo.stop()
    assert result["distillation"]["num_regrowths_lifetime"] >= 1
    assert min(leaves) > 1
