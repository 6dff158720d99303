"""Images beside other parts of an observation: recorded, labelled, and learned from."""

import numpy as np
import pyarrow as pa
import pytest

from rllib_kd import compare
from rllib_kd.observations.flattening import Flattener
from rllib_kd.offline.job import LabelJob
from tests.algorithm.small import small_config
from tests.observations.mixed import Crossing, oracle
from tests.offline.labelled import recorded_config
from tests.offline.recorded import label_here, lists, read, write_parquet

SHAPE = {"conv_filters": [[8, 5, 3]], "fcnet_hiddens": [16], "fcnet_activation": "relu"}


def test_recorded_parts_become_vectors_which_get_labels(tmp_path):
    env = Crossing()
    env.reset(seed=0)
    seen, wanted = zip(*((env.look(), env.wanted) for _ in range(6)), strict=True)
    eyes, switches = (np.stack([obs[key] for obs in seen]) for key in ("eye", "switch"))
    struct = pa.StructArray.from_arrays([lists(eyes.reshape(6, -1)), lists(switches)], ["eye", "switch"])
    write_parquet(tmp_path / "in" / "a.parquet", {"obs": struct})
    label_here(LabelJob(oracle().for_space(Crossing.observation_space), str(tmp_path / "in"), str(tmp_path / "out")))
    labelled = read(tmp_path / "out" / "a.parquet")
    np.testing.assert_array_equal(
        labelled["obs"], Flattener(Crossing.observation_space)({"eye": eyes, "switch": switches}, 6)
    )
    assert labelled["teacher_q"].argmax(-1).tolist() == list(wanted)
    assert 0 < sum(wanted) < 6


@pytest.mark.slow
def test_students_learn_from_what_was_recorded(build, tmp_path):
    teacher = oracle().for_space(Crossing.observation_space)
    config = small_config(Crossing).distillation(teacher=teacher).offline_data(output=str(tmp_path / "rows"))
    algo = build(config.rl_module(model_config=SHAPE))
    for _ in range(3):
        algo.train()
    algo.stop()
    config = recorded_config(str(tmp_path / "rows"), teacher).rl_module(model_config=SHAPE).training(lr=3e-3)
    student = build(config.training(training_intensity=32))
    for _ in range(12):
        student.train()
    done = compare(teacher, student, Crossing, num_episodes=10)
    assert done.student.return_mean > 7.5
    assert done.teacher.return_mean == 8.0
