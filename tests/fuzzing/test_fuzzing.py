"""Files changed at random are read or refused, and nothing in them runs."""

import gc
import os
import pickle

import pytest

from tests.fuzzing.mutations import canaries
from tests.fuzzing.run import FORMATS, fuzz
from tests.fuzzing.workers import measure_apart

#: The others take several seconds each; tests/fuzzing/run.py tries more files of all.
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name in ("onnx", "sb3") else name for name in FORMATS]


def test_a_fork_collects_nothing_of_what_was_there(tmp_path):
    """It could be references to Ray's actors."""

    class Noisy:
        def __del__(self):
            (tmp_path / "collected").touch()

    gc.disable()
    try:
        one = Noisy()
        one.itself = one
        del one
        assert measure_apart(gc.collect).verdict == "accepted"
        assert not (tmp_path / "collected").exists()
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_changed_files_are_read_or_refused(name):
    row = fuzz(name, 20, seed=1)
    assert (row.files, row.has_failed, row.over_300_mb) == (20, False, 0)


def test_a_file_that_is_executed_would_be_seen(tmp_path):
    """The calls that the fuzzer puts into pickles make their file where they are executed."""
    for i in range(len(canaries(""))):

        def unpickle(i=i):
            pickle.loads(b"\x80\x02" + canaries(os.environ["FUZZING_MARKER"])[i] + b".")

        if b"pathlib" not in canaries("")[i]:  # which only makes a path
            assert measure_apart(unpickle, tmp_path / "mark").executed
