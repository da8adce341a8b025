"""Freed memory that stays with the process."""

import ctypes
import json
import subprocess
import sys

import pytest

from hwrlib.memory import keep_freed

FAULTS = """
import json, resource, sys, torch
from hwrlib.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (48, 16, 32):
        [torch.ones(megabytes, 2**18) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed()
print(json.dumps([faults() for _ in range(6)][-1]))
"""


def faults(way: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    assert faults("kept") < 0.1 * faults("given back")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", None)
    keep_freed()
