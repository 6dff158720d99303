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
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    keeps, page_faults = done.stdout.split()
    return keeps == "True", int(page_faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_arrays_of_each_step_are_not_handed_out_page_by_page():
    keeps, page_faults = run()
    assert keeps
    assert page_faults < 100  # of 200,000 pages


@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_user_may_choose(variable):
    keeps, _ = run(**{variable: "" if variable == "GLIBC_TUNABLES" else "131072"})
    assert not keeps
