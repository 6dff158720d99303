"""A run ends by itself when its students no longer come closer to their teacher, and not before."""

import pytest

from rllib_kd import DistillDQN
from rllib_kd.algorithm.patience import Patience
from tests.algorithm.resumable import resumable_config


def waited(patience, regrets, *, every=100, start=0):
    """Env steps without a lower regret, and whether it is over, after each iteration."""
    found = []
    for i, regret in enumerate(regrets, 1):
        own = regret if isinstance(regret, dict) else {"a": regret}
        results = {"distillation": {}, "learners": {name: {"q_regret": value} for name, value in own.items()}}
        patience.look_at(results, start + every * i)
        found.append((results["distillation"].get("env_steps_without_lower_regret"), results.get("done", False)))
    return found


def test_it_ends_when_the_regret_stays_where_it_is():
    falling, flat = [2.0**-i for i in range(10)], [2.0**-9] * 50
    found = waited(Patience(1_000, 0.0), falling + flat)
    assert found[9] == (0, False)
    first = [done for _, done in found].index(True)
    assert 25 <= first <= 45  # the average still falls for a while


def test_one_student_that_still_learns_is_enough():
    falling = [{"a": 1.0, "b": 0.9**i} for i in range(40)]
    assert not any(done for _, done in waited(Patience(1_000, 0.0), falling))
    assert any(done for _, done in waited(Patience(1_000, 0.0), [{"a": 1.0, "b": 1.0}] * 40))


@pytest.mark.parametrize("start", [1.0, 0.0])
def test_a_regret_of_0_cannot_fall(start):
    found = waited(Patience(1_000, 0.0), [start] + [0.0] * 20)
    assert [done for _, done in found].index(True) == 10


def test_a_perfect_student_lets_a_family_end():
    regrets = [{"perfect": 0.5**i if i < 5 else 0.0, "flat": 1.0} for i in range(20)]
    assert [done for _, done in waited(Patience(1_000, 0.0), regrets)].index(True) == 14


def test_a_regret_that_is_often_0_still_falls_where_its_mean_does():
    falling = [0.9 ** (i // 5) if i % 5 == 0 else 0.0 for i in range(200)]
    assert not any(done for _, done in waited(Patience(1_000, 0.0), falling))
    flat = [1.0 if i % 5 == 0 else 0.0 for i in range(200)]
    assert any(done for _, done in waited(Patience(1_000, 0.0), flat)[:60])


def test_it_waits_until_the_teacher_acts_no_more():
    schedule = [[0, 1.0], [2_000, 0.0]]
    rising = [1.0 + 0.1 * i for i in range(20)]  # states of the student are harder
    found = waited(Patience(1_000, schedule), rising + [3.0] * 20)
    assert [without for without, _ in found[:20]] == [0] * 20
    assert [done for _, done in found].index(True) == 29


def test_a_state_continues_the_count():
    one, other = Patience(1_000, 0.0), Patience(1_000, 0.0)
    waited(one, [1.0, 0.5, 0.5, 0.4])
    other.set_state(one.get_state())
    assert waited(one, [0.4] * 10, start=400) == waited(other, [0.4] * 10, start=400)


def test_rows_that_are_held_out_count_and_those_learned_from_do_not():
    patience = Patience(1_000, 0.0)
    for i in range(1, 41):
        results = {"distillation": {"q_regret": 1.0}, "learners": {"default_policy": {"q_regret": 0.9**i}}}
        patience.look_at(results, 100 * i)
    assert results["done"]


def test_without_patience_nothing_is_counted():
    assert waited(Patience(None, 0.0), [1.0] * 50) == [(None, False)] * 50


@pytest.mark.slow
def test_a_run_ends_and_goes_on_counting_when_it_is_resumed(build, tmp_path, caplog):
    config = resumable_config().distillation(patience=700, teacher_fraction=0.0)
    algo = build(config)
    first = algo.train()
    assert not first["done"]
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    results = [algo.train()]
    while not results[-1]["done"]:
        results.append(algo.train())
    assert results[-1]["distillation"]["env_steps_without_lower_regret"] >= 700
    assert "no student's regret has fallen by 2 % (patience=700)" in caplog.text
    resumed = DistillDQN.from_checkpoint(path)
    for result in results:
        again = resumed.train()
        for key in ("done", "num_env_steps_sampled_lifetime"):
            assert again[key] == result[key]
        key = "env_steps_without_lower_regret"
        assert again["distillation"][key] == result["distillation"][key]
    resumed.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, "'patience' cannot be 0"),
        ({"patience": 2.5}, "'patience' cannot be 2.5"),
        ({"patience": 10, "teacher": None, "td_coeff": 1.0}, "`patience`=10 needs a teacher"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resumable_config().distillation(**settings).validate()
