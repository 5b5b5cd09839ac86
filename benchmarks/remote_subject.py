"""Reading a set that a server on this machine holds, as child processes call it."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from fastmoco.data.dataset import open_dataset
from fastmoco.data.remote.cache import FOLDER_VARIABLE
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, streamed_shards
from fastmoco.pipelines.policies import POLICIES

BATCH = 64


def epoch(path: str) -> dict[str, float]:
    """One epoch of two crops of 224, from an address and with an empty cache.

    Returns:
        ``seconds`` until the last batch is there.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = folder
        start = time.perf_counter()
        with open_dataset(path) as dataset:
            plan = EpochPlan(
                seed=0,
                epoch=0,
                num_samples=len(dataset),
                global_batch_size=BATCH,
                shard_ends=streamed_shards(dataset, BATCH),
            )
            spec = LoaderSpec(view_size=224, policy=POLICIES["moco_v2"])
            cpu = torch.device("cpu")
            loader = build_loader(dataset, plan, spec=spec, stop_epoch=1, device=cpu, name="beton")
            with closing(loader):
                images = sum(len(batch.crops) for batch in loader)
            seconds = time.perf_counter() - start
        assert images == plan.num_batches * BATCH
    return {"seconds": seconds}


def download(address: str, count: int) -> dict[str, float]:
    """All shards by curl, four at a time, which checks nothing but their length."""
    urls = address.replace("*", f"[00000-{count - 1:05d}]")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = ["curl", "-sSf", "--parallel", "--parallel-max", "4", "-o", f"{folder}/#1", urls]
        subprocess.run(command, check=True)
        os.sync()
        return {"seconds": time.perf_counter() - start}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder in a process of its own; the address, with its last slash."""
    command = [sys.executable, "-m", "benchmarks.remote_subject", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/"
        finally:
            server.kill()


async def _serve(folder: str) -> None:
    from aiohttp import web

    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
