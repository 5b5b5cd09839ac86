"""`fastmoco replay`: compute one step of a run again and say where it is not finite.

The state is that of the newest checkpoint before the step (or of the start), from which the steps
in between are taken as the run took them: draws are functions of the step. All steps run eagerly,
so that layers can be watched. The run folder is only read.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastmoco.configuration import config_from_dict
from fastmoco.data.dataset import open_dataset
from fastmoco.errors import UsageError
from fastmoco.runs.checkpoint import Checkpoint, checkpoint_before
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.beginning import begin
from fastmoco.train.checks import check_config
from fastmoco.train.device_rules import with_augmentation, with_schedule
from fastmoco.train.settings import Compile, CudaGraph, ReplayConfig, TrainConfig
from fastmoco.train.trainer import Trainer
from fastmoco.waiting import waiting


@dataclass(kw_only=True, slots=True)
class Replay:
    """What one step computed."""

    step: int
    from_step: int
    """Step of the checkpoint that it began with; 0: the start of the run."""
    loss: float
    changed: bool
    """Whether the step may change the weights: all numbers are finite."""
    first_layer: str | None = None
    """First layer of the query encoder whose output is not finite."""
    images: list[str] = field(default_factory=list)
    """Images whose output of this layer is not finite; batch norm then spreads it to others."""
    gradients: list[str] = field(default_factory=list)
    """Weights whose gradient is not finite, or too large for its square."""
    largest_gradient: float = 0.0
    """Largest finite absolute value of a gradient."""

    def to_json(self) -> dict[str, Any]:
        """All fields as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """A line for each."""
        lines = {
            "step": f"{self.step}, from the state after step {self.from_step}",
            "loss": f"{self.loss:.4f}",
            "first layer": f"{self.first_layer or 'none'} (with an output that is not finite)",
            "images": _shortened(self.images),
            "gradients": f"{_shortened(self.gradients)}; largest {self.largest_gradient:.3g}",
            "verdict": "finite" if self.changed else "not finite: such a step changes nothing",
        }
        return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def replay(path: Path, cfg: ReplayConfig) -> Replay:
    """Compute a step of a run again.

    Args:
        path: Run folder.
        cfg: The step, counted from 1; by default that of the run's ``bad-step-N.json``.

    Raises:
        UsageError: If there is no such step, or the run had several devices.
        CheckpointError: If the checkpoint before it is damaged.
        OSError: If the run or its dataset is missing.
    """
    run = RunFolder(path)
    step = cfg.step or _first_bad_step(run)
    checkpoint = checkpoint_before(run.checkpoints, step)
    settings = _settings(run, checkpoint, cfg)
    device = check_config(settings)
    settings = with_schedule(with_augmentation(settings, device, run), run)
    with open_dataset(str(settings.data.train)) as dataset, tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, RunFolder(Path(folder)), dataset, device)
        if checkpoint:
            trainer.check_checkpoint(checkpoint)
            trainer.restore(checkpoint)
        else:
            begin(trainer)
        if step > trainer.total_steps:
            raise UsageError(f"{path} ends at step {trainer.total_steps}, got step={step}")
        return _compute(trainer, step)


def _first_bad_step(run: RunFolder) -> int:
    steps = run.bad_steps()
    if not steps:
        raise UsageError(f"{run.path} has no bad-step-N.json; give step=N, a step of the run")
    return min(steps)


def _settings(run: RunFolder, checkpoint: Checkpoint | None, cfg: ReplayConfig) -> TrainConfig:
    """Settings of the run, without what would keep a layer from being watched."""
    values = checkpoint.facts["config"] if checkpoint else run.read_config()
    settings: TrainConfig = config_from_dict(TrainConfig, values)
    settings.device = cfg.device
    if cfg.data.train:
        settings.data.train = cfg.data.train
    settings.monitor.every_epochs = 0
    settings.train.compile, settings.train.cuda_graph = Compile.never, CudaGraph.never
    return settings


def _compute(trainer: Trainer, step: int) -> Replay:
    """Take the steps before, then the step itself under watch."""
    from_step = trainer.steps_done
    with closing(trainer.open_loader()) as loader:
        with waiting(f"steps {from_step + 1} to {step}"):
            while trainer.steps_done < step - 1:
                trainer.take(next(loader), trainer.learning_rate)
        batch = next(loader)
        with _watched(trainer.step.model.query_encoder) as seen:
            metrics = trainer.take(batch, trainer.learning_rate)
    return Replay(
        step=step,
        from_step=from_step,
        loss=float(metrics[0]),
        changed=trainer.step.guard.read().in_a_row == 0,
        first_layer=seen.layer,
        images=[trainer.dataset.name(i) for i in seen.samples(batch.sample_id)],
        **_gradients(trainer.step.model),
    )


class _Seen:
    """What hooks saw: the first layer with an output that is not finite, and the rows of it."""

    def __init__(self) -> None:
        self.layer: str | None = None
        self._bad_rows: list[int] = []
        self._rows_before = 0  # of earlier micro-batches, or of the other direction of a loss

    def samples(self, ids: Tensor) -> list[int]:
        """The sample ids of the bad rows, of a batch's ``(N,)``."""
        return [int(ids[row % len(ids)]) for row in self._bad_rows]

    def layer_hook(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self.layer is None and isinstance(output, Tensor) and not output.isfinite().all():
                self.layer = name
                bad = ~output.detach().flatten(1).isfinite().all(dim=1)
                self._bad_rows = (bad.nonzero()[:, 0] + self._rows_before).tolist()

        return hook

    def encoder_hook(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._rows_before += len(output)


@contextmanager
def _watched(encoder: nn.Module) -> Iterator[_Seen]:
    seen = _Seen()
    leaves = [(n, m) for n, m in encoder.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(seen.layer_hook(name)) for name, module in leaves]
    handles.append(encoder.register_forward_hook(seen.encoder_hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _gradients(model: nn.Module) -> dict[str, Any]:
    """Names of the weights with a bad gradient, and the largest value of the others."""
    found = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in found.items() if not gradient.square().sum().isfinite()]
    good = [float(gradient.abs().max()) for name, gradient in found.items() if name not in bad]
    return {"gradients": bad, "largest_gradient": max(good, default=0.0)}


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none is bad"
