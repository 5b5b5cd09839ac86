"""Training on a dataset elsewhere, and S3 by the real package against moto's server.

S3 needs `pip install s3fs 'moto[s3,server]'`, which the other tests do not.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from fastmoco.cli import main
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.dataset import open_dataset
from fastmoco.data.remote import arrivals, cache, fetch
from fastmoco.data.remote.cache import FOLDER_VARIABLE, LIMIT_VARIABLE
from fastmoco.data.remote.storage import DeniedError, UnreachableError
from fastmoco.draws import host
from fastmoco.errors import UsageError
from fastmoco.pipelines import contract
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, streamed_shards
from fastmoco.pipelines.policies import POLICIES
from fastmoco.ranks import Ranks
from tests.limits import HANG_SECONDS
from tests.object_server import served_files, serving
from tests.optional import require
from tests.ranks import run_ranks
from tests.runs import OPTIONS, write_colors

pytestmark = pytest.mark.full


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three shards and a test file; an empty cache."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "RETRY_SECONDS", 0.0)
    images = write_colors(tmp_path / "images", seed=0, per_class=8)
    options = {"page_bytes": 1 << 21, "workers": 1}
    convert(str(images), tmp_path / "train.beton", ConvertConfig(shards=3, **options))
    convert(str(images), tmp_path / "test.beton", ConvertConfig(**options))
    return tmp_path


def options_of(run: Path) -> list[str]:
    fixed = ["train.compile=never", "device=cpu", "train.tracker=none", "train.log_every_steps=1"]
    return ["train", *OPTIONS, *fixed, f"run_dir={run}"]


def rows_of(run: Path) -> list[str]:
    """Loss of each row."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line.split('"loss": ')[1].split(",")[0] for line in lines]


@pytest.mark.filterwarnings("default:.*no answer, so the files:UserWarning")
def test_a_run_on_shards_elsewhere_is_the_run_on_files_here(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require("aiohttp")
    here, there = files / "here", files / "there"
    shards = sorted(files.glob("train-*.beton"))
    assert main([*options_of(here), f"data.train={files}/train-*.beton", "train.max_steps=4"]) == 0
    with serving(served_files(*shards, files / "test.beton"), drops=3) as served:
        pattern = f"{served.address}train-*-of-00003.beton"
        words = [*options_of(there), f"data.train={pattern}"]
        words += [f"data.test={served.address}test.beton", "monitor.allow_overlap=true"]
        assert main([*words, "train.max_steps=2"]) == 0, capsys.readouterr().err
        assert f"train: {pattern}\n" in (there / "config.yaml").read_text()
        assert f"{pattern}, 24 images" in (there / "train.log").read_text()
        assert main(["knn", str(there), *words[-3:-1], "k=3", "allow_overlap=true"]) == 0
    capsys.readouterr()
    assert main([*words, "train.max_steps=4"]) == 0  # the server is gone
    assert f"fastmoco: {pattern}: no answer, so the files fetched on" in capsys.readouterr().err
    assert rows_of(there) == rows_of(here)


def test_a_streamed_run_with_little_room_is_the_run_with_all_of_it(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("aiohttp")
    for module in (arrivals, cache, contract, host):
        monkeypatch.setattr(module, "NUM_STREAMS", 4)
    images = write_colors(files / "more", seed=1, per_class=16)
    convert(str(images), files / "many.beton", ConvertConfig(shards=12, page_bytes=1 << 21))
    shards = served_files(*sorted(files.glob("many-*.beton")))
    largest = max(map(len, shards.values()))
    with serving(shards, drops=3) as served:
        words = [f"data.train={served.address}many-*-of-00012.beton", "global_batch_size=8"]
        words += ["monitor.every_epochs=1", "train.epochs=3", "pipeline.name=beton"]
        assert main([*options_of(files / "all"), *words]) == 0
        monkeypatch.setenv(FOLDER_VARIABLE, str(files / "small-cache"))
        monkeypatch.setenv(LIMIT_VARIABLE, str(7.5 * largest / 1e9))
        stopped = [*options_of(files / "some"), *words, "train.max_steps=4"]  # within an epoch
        assert main(stopped) == 0
        shutil.copytree(files / "some", files / "moved")
        assert main([*stopped, "train.max_steps=0"]) == 0
    assert len(rows_of(files / "all")) == 18
    words[0] = f"data.train={files}/many-*.beton"  # one goes on with the files here
    assert main([*options_of(files / "moved"), *words]) == 0
    assert rows_of(files / "some") == rows_of(files / "all")
    assert rows_of(files / "moved") == rows_of(files / "all")
    assert "48 images in 12 shards, one after the other," in (files / "all/train.log").read_text()
    assert len([*files.glob("cache/*/many-*.beton")]) == 12
    assert len([*files.glob("small-cache/*/many-*.beton")]) <= 7


def test_a_killed_process_leaves_what_the_next_one_continues(files: Path) -> None:
    require("aiohttp")
    program = (
        "import sys\nfrom fastmoco.data.dataset import open_dataset\nopen_dataset(sys.argv[1])"
    )
    objects = served_files(files / "test.beton")
    with serving(objects, stalls=9, sound_gets=5) as served:
        address = f"{served.address}test.beton"
        child = subprocess.Popen([sys.executable, "-c", program, address])
        assert served.stalled.wait(HANG_SECONDS)
        child.kill()
        child.wait()
        served.stalls = 0
        (partial,) = files.glob("cache/*/*.partial")
        here, before = partial.stat().st_size, len(served.gets())
        assert 0 < here < len(objects["test.beton"])
        open_dataset(address).close()
        starts = [int(where[6:].split("-")[0]) for where in served.gets()[before:]]
        assert min(starts) == here
    assert [path.read_bytes() for path in files.glob("cache/*/*.beton")] == [*objects.values()]


def _count(_: Ranks, address: str) -> int:
    with open_dataset(address) as found:
        return len(found)


def test_ranks_share_the_cache(files: Path) -> None:
    require("aiohttp")
    shards = served_files(*sorted(files.glob("train-*.beton")))
    with serving(shards) as served:
        assert run_ranks(_count, f"{served.address}train-*-of-00003.beton") == [24, 24]
        for name in shards:
            assert sum(where.startswith("bytes=0-") for where in served.gets(name)) == 1


def _read(ranks: Ranks, address: str) -> list[list[int]]:
    """This rank's images of two epochs, ``(batches, N)``, as a loader gives them."""
    with open_dataset(address) as found:
        settings = {"seed": 0, "epoch": 0, "num_samples": len(found), "global_batch_size": 64}
        places = {"rank": ranks.rank, "world_size": ranks.world_size}
        plan = EpochPlan(**settings, **places, shard_ends=streamed_shards(found, 64))
        spec = LoaderSpec(view_size=16, policy=POLICIES["moco_v2"], num_threads=1)
        options = {"spec": spec, "stop_epoch": 2, "device": torch.device("cpu"), "name": "beton"}
        with closing(build_loader(found, plan, **options)) as loader:
            return [batch.sample_id.tolist() for batch in loader]


def test_ranks_fetch_their_shards_and_see_equal_global_batches(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("aiohttp")
    images = write_colors(files / "most", seed=1, per_class=70)  # 210 images
    convert(str(images), files / "most.beton", ConvertConfig(shards=64, page_bytes=1 << 21))
    shards = served_files(*sorted(files.glob("most-*.beton")))
    found = []
    for world_size in (1, 2, 4):
        monkeypatch.setenv(FOLDER_VARIABLE, str(files / f"cache-{world_size}"))
        with serving(shards) as served:
            pattern = f"{served.address}most-*-of-00064.beton"
            parts = run_ranks(_read, pattern, world_size=world_size)
            # The index begins like the file; shards that two streams share are of one rank.
            begun = [
                sum(where.startswith("bytes=0-") for where in served.gets(name)) for name in shards
            ]
        assert begun == [2] * 64
        found.append(np.concatenate(parts, axis=1))
    assert found[0].shape == (6, 64)
    assert_array_equal(found[1], found[0])
    assert_array_equal(found[2], found[0])


@pytest.fixture
def bucket(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a server whose bucket `sets` holds the files under `a/`."""
    require("s3fs")
    require("moto")
    from botocore.session import get_session
    from moto.server import ThreadedMotoServer

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(files / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(files / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anna")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = get_session().create_client("s3")
    client.create_bucket(Bucket="sets")
    for path in sorted(files.glob("*.beton")):
        client.put_object(Bucket="sets", Key=f"a/{path.name}", Body=path.read_bytes())
    client.stopped = server.stop
    yield client
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages themselves
@pytest.mark.parametrize("pattern", ["train-*.beton", "train-*-of-00003.beton"])
def test_shards_of_a_bucket(bucket: Any, files: Path, pattern: str) -> None:  # noqa: ARG001
    with open_dataset(f"s3://sets/a/{pattern}") as found, open_dataset(files / pattern) as wanted:
        assert str(found.path) == f"s3://sets/a/{pattern}"
        assert found.fingerprint == wanted.fingerprint
        assert all(
            bytes(found.blob(number)) == bytes(wanted.blob(number)) for number in range(len(wanted))
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shards_of_a_bucket_come_as_they_are_read(
    bucket: Any,  # noqa: ARG001
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "NUM_STREAMS", 2)
    pattern = "train-*-of-00003.beton"
    with open_dataset(f"s3://sets/a/{pattern}") as found, open_dataset(files / pattern) as wanted:
        assert not [*files.glob("cache/*/*.beton")]
        assert found.fingerprint == wanted.fingerprint
        assert_array_equal(found.decode(23), wanted.decode(23))
        assert len([*files.glob("cache/*/*.beton")]) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_wrong_with_a_bucket_is_one_line(bucket: Any, files: Path) -> None:
    for address in ("s3://sets/a/none.beton", "s3://nobody/test.beton"):
        with pytest.raises(FileNotFoundError, match=r"\.beton: no such file there; correct the"):
            open_dataset(address)
    with pytest.raises(UsageError, match="s3://sets/b lists no such files"):
        open_dataset("s3://sets/b/train-*.beton")
    open_dataset("s3://sets/a/test.beton").close()
    other = files / "train-00000-of-00003.beton"
    bucket.put_object(Bucket="sets", Key="a/test.beton", Body=other.read_bytes())
    with pytest.warns(UserWarning, match="s3://sets/a/test.beton: changed since it was fetched on"):
        open_dataset("s3://sets/a/test.beton").close()
    bucket.stopped()
    with pytest.warns(UserWarning, match="no answer, so the files fetched on"):
        open_dataset("s3://sets/a/test.beton").close()
    shutil.rmtree(files / "cache")
    with pytest.raises(UnreachableError, match=r"test\.beton: cannot be read \(.*; check the conn"):
        open_dataset("s3://sets/a/test.beton")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_missing_and_wrong_credentials_are_one_line(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.request import Request, urlopen

    # From now the server checks credentials.
    reset = Request(f"{bucket.meta.endpoint_url}/moto-api/reset-auth", data=b"0", method="POST")
    reset.add_header("Content-Type", "text/plain")
    urlopen(reset).close()
    with pytest.raises(DeniedError, match="those that were found do not fit: set AWS_ACCESS_KEY"):
        open_dataset("s3://sets/a/test.beton")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DeniedError, match="none were found: set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        open_dataset("s3://sets/a/test.beton")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match=r"credentials cannot be read: .*nobody.*; correct AWS"):
        open_dataset("s3://sets/a/test.beton")
