"""What a machine has to give, on made-up control groups as Linux shows them."""

import os

import psutil
import pytest

from tools import machine

GB = 1_000_000_000


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """`cgroups(own, {file: content})` writes the files that the kernel would show."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    memory = type("Memory", (), {"available": 20 * GB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return write


def test_without_control_groups_the_machine_itself_counts(cgroups):
    assert machine.available_memory() == 20 * GB
    assert machine.cores() == 8
    assert machine.jobs() == 6  # of 3 GB each


def test_the_tightest_group_counts_in_version_2(cgroups):
    cgroups(
        "0::/outer/inner\n",
        {
            "outer/inner/memory.max": "max",
            "outer/inner/memory.current": 5 * GB,
            "outer/memory.max": 8 * GB,
            "outer/memory.current": 5 * GB,
            "outer/memory.stat": f"anon 7\ninactive_file {2 * GB}\n",
            "outer/cpu.max": "350000 100000",
            "outer/inner/cpu.max": "max 100000",
        },
    )
    assert machine.available_memory() == 5 * GB  # what only caches files can be had again
    assert machine.cores() == 3
    assert machine.jobs() == 1


def test_the_tightest_group_counts_in_version_1(cgroups):
    cgroups(
        "5:cpu,cpuacct:/host/path\n4:memory:/host/path\n1:name=systemd:/x\n",
        {  # a container sees itself as the root, and not the path that the host knows
            "memory/memory.limit_in_bytes": 7 * GB,
            "memory/memory.usage_in_bytes": 1 * GB,
            "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 2}",
            "cpu/cpu.cfs_quota_us": 200_000,
            "cpu/cpu.cfs_period_us": 100_000,
        },
    )
    assert machine.available_memory() == 6.5 * GB
    assert machine.cores() == 2
    assert machine.jobs() == 2


def test_no_limit_is_no_limit(cgroups):
    files = {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": GB}
    files |= {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000}
    cgroups("5:cpu:/\n4:memory:/\n", files)
    assert machine.available_memory() == 20 * GB
    assert machine.cores() == 8


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("150000 100000", 1)])
def test_a_part_of_a_core_is_rounded_down_but_one_is_there(cgroups, quota, cores):
    cgroups("0::/\n", {"cpu.max": quota})
    assert machine.cores() == cores


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_machine_of_3_gb_runs_one_at_a_time(cgroups, left):
    cgroups("0::/\n", {"memory.max": 3 * GB, "memory.current": (3 - left) * GB})
    assert machine.available_memory() == left * GB
    assert machine.jobs() == 1
