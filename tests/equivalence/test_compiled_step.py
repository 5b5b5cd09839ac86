"""Steps of different settings in one process do not share a compiled graph."""

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.step_subject import training_step
from fastmoco.draws.host import draw_keys
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from tests.compiling import require_compiler

CPU = torch.device("cpu")


@pytest.mark.full
def test_another_precision_is_compiled_anew() -> None:
    require_compiler()
    torch.compiler.reset()
    ids = torch.arange(4)
    keys = torch.from_numpy(draw_keys(0, 0, ids.numpy()))
    crops = torch.randint(256, (4, 2, 16, 16, 3), dtype=torch.uint8)
    batch = Batch(crops, torch.zeros(4, 2, 4, dtype=torch.int32), ids, keys, ids, 0.0)
    graphs = []
    for precision in (Precision.float32, Precision.bf16):
        step = training_step(
            ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4),
            MocoConfig(dim=8, queue_size=16),
            policy=POLICIES["cifar"],
            device=CPU,
            precision=precision,
            compiled=True,
        )
        step(batch, 0.03)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] > graphs[0]
