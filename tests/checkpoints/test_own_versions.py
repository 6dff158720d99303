"""Checkpoints of earlier versions are read, from 0.2 on."""

import pickletools
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from rllib_kd import DistillDQN, Teacher, load_teacher
from tests.checkpoints.write_own import KINDS, names_of, q_values_of, weights_of

WRITTEN = [
    path for version in sorted(Path(__file__).parent.glob("rllib_kd-*")) for path in sorted(version.glob("*.npz"))
]
#: What pickles of these checkpoints name, so also those of users. None of it may move without an alias.
NAMES = {
    *(
        f"rllib_kd.{name}"
        for name in (
            "DistillDQN",
            "DistillDQNConfig",
            "DistillDQNTorchLearner",
            "DistillEnvRunner",
            "LabelledData",
            "Teacher",
            "env_runner.behavior.ActionGaps",
            "env_runner.family.FamilyTurns",
            "env_runner.multi_agent.DistillMultiAgentEnvRunner",
            "env_runner.multi_agent.ExplainingMultiAgentEnvRunner",
            "env_runner.recurrent.RecurrentEnvRunner",
            "env_runner.sequences.OpenSequences",
            "env_runner.single_agent.StudentsEnvRunner",
            "env_runner.students.StudentsEnvRunner",
            "learner.label_statistics.QStatistics",
            "networks.dqn_module.EncoderFreeDQNCatalog",
            "networks.memories.FamilyMemory",
            "networks.mixed.MixedDQNCatalog",
            "networks.mixed_space.MixedBox",
            "networks.recurrent.Memory",
            "networks.recurrent.RecurrentDQNCatalog",
            "networks.trees.module.TreeRLModule",
            "observations.connectors.MaskApart",
            "observations.connectors.OneVector",
            "observations.masks.LegalActions",
            "observations.pipeline.Shown",
            "teachers.function.Members",
            "teachers.function.QNetwork",
        )
    ),
    *(f"tests.observations.{name}" for name in ("masked.InDict", "masked.Two", "masked.own_policy", "mixed.Crossing")),
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder of a checkpoint, by its weights: the archive beside them, unless it is a folder already."""
    folders = {}
    for weights in WRITTEN:
        folders[weights] = weights.with_suffix("")
        if not folders[weights].exists():
            folders[weights] = tmp_path_factory.mktemp("unpacked") / weights.stem
            shutil.unpack_archive(f"{weights.with_suffix('')}.tar.xz", folders[weights])
    return folders


def test_there_is_one_of_each_kind():
    assert {weights.stem for weights in WRITTEN} == set(KINDS)


@pytest.mark.parametrize("weights", WRITTEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_checkpoint_of_an_earlier_version_resumes(cluster, unpacked, weights):
    path = unpacked[weights]
    algo = DistillDQN.from_checkpoint(str(path))
    try:
        restored = weights_of(algo)
        students = {name: Teacher(algo.get_module(name)) for name in names_of(algo)}
        # Another way: read as data, by those who load a student.
        loaded = {name: load_teacher(path / "learner_group" / "learner" / "rl_module" / name) for name in students}
        with np.load(weights) as file:
            written = dict(file)
        for found in (q_values_of(students), q_values_of(loaded)):
            for name, q_values in found.items():
                np.testing.assert_allclose(q_values, written[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert set(written) == {*restored, *q_values_of(students)}
        for name, expected in restored.items():
            np.testing.assert_array_equal(written[name], expected, err_msg=name)
        before = algo.num_env_steps
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] > before > 0
        figures = result["distillation"]
        assert figures["num_gradient_steps_lifetime"] + figures.get("num_regrowths_lifetime", 0) > 0
    finally:
        algo.stop()


def test_students_of_earlier_versions_are_teachers(unpacked):
    for weights in WRITTEN:
        if weights.stem not in ("agents", "family", "recurrent"):
            num_actions = 4 if weights.stem == "masks" else 2
            assert load_teacher(unpacked[weights]).action_space.n == num_actions


def names_in(pickle: bytes) -> Iterator[str]:
    """Yield the names of classes and functions in a pickle, and in pickles in it."""
    memo: list[str | None] = []
    texts: list[str | None] = []
    last = None  # what the last instruction has put on the stack, if it is text
    for code, value, _ in pickletools.genops(pickle):
        if code.name == "STACK_GLOBAL":
            yield ".".join(map(str, texts[-2:]))
        elif code.name == "MEMOIZE":
            memo.append(last)
        elif code.name != "FRAME":
            last = memo[value] if code.name in ("BINGET", "LONG_BINGET") else value if isinstance(value, str) else None
            texts += [] if last is None else [last]
            if isinstance(value, bytes) and value.startswith(b"\x80\x05") and value.endswith(b"."):
                yield from names_in(value)


@pytest.fixture(scope="module")
def found(unpacked):
    """The names in each file."""
    files = (path for folder in unpacked.values() for path in folder.rglob("*.pkl"))
    return {path: set(names_in(path.read_bytes())) for path in files}


def test_names_in_checkpoints_are_known(found):
    own = {name for names in found.values() for name in names if name.startswith(("rllib_kd.", "tests."))}
    assert not own - NAMES, (
        "Checkpoints name something new. Prefer public classes and plain data. If that is not possible, add it to "
        "NAMES: from the next release on it cannot move without an alias."
    )
    assert not NAMES - own, "No checkpoint here names these. Restore the one that did, or remove them from NAMES."


def test_checkpoints_have_no_code(found):
    """Another Python could not read it. The remedy is in write_own.py."""
    assert not [path for path, names in found.items() if any("cloudpickle" in name for name in names)]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_in_checkpoints_are_importable(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(import_module(module), attribute), (
        f"Checkpoints of earlier versions name {name}. If it has moved, let {module} import it from where it is now."
    )
