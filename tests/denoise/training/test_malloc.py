"""The allocator keeps freed memory."""

import subprocess
import sys

import pytest

from denoise.training.malloc import keep_freed_memory

FAULTS = """
import resource
from denoise.training.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        a = bytearray(12 << 20)
        b = bytearray(12 << 20)
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
faults()  # now the heap grows, once
print(first, faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="only glibc can keep freed memory")
def test_freed_memory_is_not_requested_from_the_system_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
