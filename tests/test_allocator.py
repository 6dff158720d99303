"""The allocator: freed memory is kept, unless the user has chosen otherwise."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from rllib_kd.allocator import keep_freed_memory

print(keep_freed_memory())
for number in range(200):
    if number == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**18) for _ in range(4)]  # 2 MiB each
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**variables):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=own | variables, capture_output=True, text=True, check=True
    )
    keeps, page_faults = done.stdout.split()
    return keeps == "True", int(page_faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_arrays_of_each_step_are_not_handed_out_page_by_page():
    keeps, page_faults = run()
    assert keeps
    assert page_faults < 100  # of 200,000 pages


@pytest.mark.parametrize(
    "chosen",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.check=0"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
    ],
    ids=lambda chosen: next(iter(chosen)),
)
def test_the_user_may_choose(chosen):
    keeps, _ = run(**chosen)
    assert not keeps
