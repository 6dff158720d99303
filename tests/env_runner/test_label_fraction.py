"""Steps that the teacher does not label."""

import numpy as np
import pytest
import torch

from rllib_kd import Teacher, load_teacher
from rllib_kd.env_runner.behavior import draw_labelled
from rllib_kd.env_runner.fragment import Fragment
from rllib_kd.learner.group import DISTILLATION_COLUMNS
from tests.env_runner.runners import Silent, make_runner, sample


@pytest.mark.parametrize(("num_steps", "share", "labelled"), [(32, 0.25, 8), (8, 0.5, 4), (3, 1 / 3, 1)])
def test_one_step_of_each_part_is_drawn(num_steps, share, labelled):
    rng = np.random.default_rng(0)
    drawn = np.array([draw_labelled(num_steps, share, rng) for _ in range(400)])
    assert (drawn.sum(1) == labelled).all()
    assert (drawn.reshape(400, labelled, -1).sum(2) == 1).all()
    assert drawn.any(0).all()  # each step has its turn


def test_parts_that_are_no_whole_steps_still_have_labels():
    drawn = np.array([draw_labelled(5, 0.3, np.random.default_rng(seed)) for seed in range(400)])
    assert set(drawn.sum(1)) == {1, 2}
    assert abs(drawn.mean() - 0.3) < 0.04


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_only_a_share_of_the_states_is_labelled_and_sent(counting_config, direct):
    config = counting_config.distillation(label_fraction=0.25)
    teacher, asked = load_teacher(config.teacher), []
    noting = Teacher.from_callable(
        lambda obs: asked.append(len(obs)) or teacher.q_values(obs),
        observation_space=teacher.observation_space,
        action_space=teacher.action_space,
    )
    runner = make_runner(config if direct else config.callbacks(Silent), noting)
    asked.clear()
    (columns,), metrics = sample(runner, DISTILLATION_COLUMNS, teacher_fraction=0.0)
    assert asked == [3, 3]  # of 8 steps in 3 environments
    assert 0 < len(columns["obs"]) <= 6
    expected = teacher.q_values(torch.tensor(columns["obs"]))
    np.testing.assert_allclose(columns["teacher_q"], expected, rtol=1e-5, atol=1e-6)
    assert metrics["num_env_steps_sampled_lifetime"].peek() >= 3 * 7  # steps without labels count, too


def test_a_teacher_that_acts_labels_each_state(counting_config):
    runner = make_runner(counting_config.distillation(label_fraction=0.25))
    (columns,), _ = sample(runner, DISTILLATION_COLUMNS, teacher_fraction=0.5)
    assert len(columns["obs"]) == 3 * 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_fraction": 0.0}, r"`label_fraction` must be in \(0, 1\], a share of steps, got 0.0"),
        ({"label_fraction": 1.5}, "got 1.5"),
        ({"rollout_policy": "teacher"}, "not supported with `rollout_policy`='teacher': the teacher acts in each"),
        ({"td_coeff": 1.0}, "with `td_coeff`=1.0: TD learns from successive states. Leave it at 1"),
        ({"restarts": 2}, "with `max_regret`: each action of the student is judged by its label"),
        ({"max_regret": 3.0}, "with `max_regret`=3.0"),
        ({"teacher_fraction": 0.5}, "with `teacher_fraction`=0.5: the teacher acts at all times"),
        (
            {"label_fraction": 0.1},
            "labels no whole step of a fragment of 8. Set rollout_fragment_length to at least 10",
        ),
    ],
)
def test_what_needs_all_labels_is_refused(counting_config, settings, message):
    with pytest.raises(ValueError, match=message):
        counting_config.distillation(**{"label_fraction": 0.25, **settings}).validate()


def test_what_is_not_finite_is_counted_without_labels_too():
    fragment = Fragment(np.zeros(1, dtype=bool), is_labelled=np.array([True, False, False]))
    for obs in (0.0, np.nan, 2.0):
        labels = {"teacher_q": np.zeros((1, 2), np.float32)} if fragment.labels_next else {}
        fragment.decide(np.full((1, 1), obs, np.float32), labels, np.zeros(1, np.int64))
        fragment.step(np.zeros(1), np.zeros(1, dtype=bool), np.zeros(1, dtype=bool))
    fragment.final_obs = np.zeros((1, 1), np.float32)
    assert fragment.columns()["valid"].tolist() == [
        [False, False, False]
    ]  # the state after the labelled one is not finite
    assert fragment.num_not_finite["observations"] == 2
