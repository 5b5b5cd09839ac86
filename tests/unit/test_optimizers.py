import torch

from fastmoco.schema import OptimizerConfig
from fastmoco.train.optimizers import build_optimizer


def test_a_first_step_that_loss_scaling_skips_leaves_no_momentum():
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = build_optimizer([weight], OptimizerConfig(name="sgd", weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (torch.inf, 0.0):
        weight.grad = torch.full_like(weight, gradient)
        dirty = [torch.full_like(weight, 1e30) for _ in range(64)]  # what lies in free memory
        del dirty
        scaler.scale(torch.zeros((), requires_grad=True))
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(weight, torch.ones(64, 64))


def test_sgd_is_torchs():
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(3, 5)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"momentum": 0.9, "weight_decay": 0.01}
    plain = torch.optim.SGD([theirs], lr=0.1, fused=True, **settings)
    cfg = OptimizerConfig(name="sgd", learning_rate=0.1, sgd_momentum=0.9, weight_decay=0.01)
    optimizer = build_optimizer([ours], cfg)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
        assert torch.equal(ours, theirs)
