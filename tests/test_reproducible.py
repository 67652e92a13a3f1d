"""The same seeds give the same numbers, to the last digit, in another process."""

import json
import os
import subprocess
import sys

import pytest
from reproducible import results

# What Python does not promise: the order of sets of texts, and that of the files in a folder.
OTHER_ORDERS = """
import os, json, sys
listdir, scandir = os.listdir, os.scandir

class Reversed:  # an iterator to be closed, as scandir gives
    def __init__(self, found): self.rest = iter(list(found)[::-1])
    __iter__ = __enter__ = lambda self: self
    __next__ = lambda self: next(self.rest)
    __exit__ = close = lambda *_: None

os.listdir = lambda *path: listdir(*path)[::-1]
os.scandir = lambda *path: Reversed(scandir(*path))

from reproducible import results
json.dump(results(), sys.stdout)
"""


@pytest.fixture(scope="module")
def elsewhere() -> dict:
    """The results of a fresh process in which such orders are others."""
    environment = os.environ | {
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-c", OTHER_ORDERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_another_process_finds_the_same(elsewhere):
    here = json.loads(json.dumps(results()))
    assert [name for name in here if here[name] != elsewhere[name]] == []
    assert here.keys() == elsewhere.keys()
