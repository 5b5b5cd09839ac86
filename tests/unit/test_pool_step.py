"""A policy with a pool in the training step: what is compiled, and that steps repeat."""

import numpy as np
import pytest
import torch

from fastmoco.draws.host import draw_keys
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.train.step import TrainStep


def build_step(policy: Policy, *, compiled: bool = False) -> TrainStep:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4),
        MocoConfig(queue_size=16, dim=8),
    )
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), lr=0.1)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    return TrainStep(model, optimizer, policy=policy, mean=mean, std=std, compiled=compiled)


def batch(epoch: int) -> Batch:
    generator = torch.Generator().manual_seed(epoch)
    ids = np.arange(8, dtype=np.int64)
    return Batch(
        crops=torch.randint(0, 256, (8, 2, 16, 16, 3), generator=generator, dtype=torch.uint8),
        boxes=torch.zeros(8, 2, 4, dtype=torch.int32),
        sample_id=torch.from_numpy(ids),
        draw_key=torch.from_numpy(draw_keys(0, epoch, ids)),
        label=torch.zeros(8, dtype=torch.int64),
        data_wait_seconds=0.0,
    )


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        pytest.param("imagenette_pool", "augmentation eager (policy.pool)"),
        pytest.param("cifar", "", marks=pytest.mark.full),
    ],
)
def test_a_pool_stays_outside_of_what_is_compiled(monkeypatch, policy, said):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(str(graph.graph))
        return graph

    real_compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: real_compile(f, backend=backend, **options)
    )
    torch.compiler.reset()
    step, eager = build_step(POLICIES[policy], compiled=True), build_step(POLICIES[policy])
    assert step.eager_part == said
    assert torch.equal(step(batch(0), 0.1), eager(batch(0), 0.1))
    captured = "".join(graphs)
    assert "conv1" in captured or "conv2d" in captured
    assert ("host_views" in captured) == (policy == "cifar")
    assert "bincount" not in captured


def test_steps_with_a_pool_repeat_bit_for_bit():
    losses = []
    for _ in range(2):
        step = build_step(POLICIES["imagenette_pool"])
        losses.append([step(batch(epoch), 0.1)[0].item() for epoch in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
