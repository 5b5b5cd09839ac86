"""Memory limits of containers and jobs, of both versions of control groups, bound what is used."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmoco import memory
from fastmoco.pipelines import resident_loader
from fastmoco.train.machine import machine_of

KIB = 1024
MACHINE = {"proc/meminfo": "MemTotal: 800 kB\nMemFree: 5 kB\nMemAvailable: 600 kB\n"}
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in (MACHINE | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group_2(folder: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    stat = f"anon 7\ninactive_file {cached}\n"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def group_1(folder: str, limit: int, used: int, cached: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"cache 9\ntotal_inactive_file {cached}\n",
    }


CASES = {
    "no groups": ({}, 800 * KIB, 600 * KIB),
    "version 2, unlimited": (
        {"proc/self/cgroup": "0::/user.slice\n", **group_2(f"{V2}/user.slice", "max", 5)},
        800 * KIB,
        600 * KIB,
    ),
    "version 2, a container's own view": (
        {"proc/self/cgroup": "0::/\n", **group_2(V2, "4000", 1500, cached=300)},
        4000,
        2800,
    ),
    "version 2, limited above": (
        {
            "proc/self/cgroup": "0::/job/step:0\n",
            **group_2(f"{V2}/job", "5000", 1000),
            **group_2(f"{V2}/job/step:0", "9000", 500),
        },
        5000,
        4000,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:hugetlb,memory:/docker/ab\n0::/\n",
            **group_1(V1, 1 << 62, 7000),
            **group_1(f"{V1}/docker/ab", 4096, 4000, cached=100),
        },
        4096,
        196,
    ),
    "version 1, under a path of the host": (
        {"proc/self/cgroup": "4:memory:/docker/ab\n", **group_1(V1, 4096, 96)},
        4096,
        4000,
    ),
    "over the limit": (
        {"proc/self/cgroup": "0::/\n", **group_2(V2, "4000", 4100)},
        4000,
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_limit_counts(tmp_path, case):
    files, total, free = CASES[case]
    root = machine(tmp_path, files)
    assert memory.total_bytes(root) == total
    assert memory.free_bytes(root) == free


@settings(max_examples=20)
@given(limits=st.lists(st.none() | st.integers(1, 1 << 63), min_size=1, max_size=5))
def test_any_depth_of_groups(tmp_path_factory, limits):
    parts = [f"g{depth}" for depth in range(len(limits) - 1)]
    files = {"proc/self/cgroup": f"0::/{'/'.join(parts)}\n"}
    for depth, limit in enumerate(limits):
        folder = "/".join([V2, *parts[:depth]])
        files |= group_2(folder, "max" if limit is None else str(limit), used=0)
    root = machine(tmp_path_factory.mktemp("root"), files)
    assert memory.total_bytes(root) == min([800 * KIB, *filter(None, limits)])


def test_advice_and_loaders_use_it(monkeypatch):
    assert 1 << 20 < memory.free_bytes() <= memory.total_bytes() < 1 << 50
    cpu = torch.device("cpu")
    assert machine_of(cpu).memory_bytes == memory.total_bytes()
    monkeypatch.setattr(memory, "free_bytes", lambda: 123)
    assert resident_loader.free_bytes(cpu) == 123
