"""The parts of one run: model, optimizer, data and progress."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmoco.configuration import config_to_dict
from fastmoco.data.dataset import Dataset
from fastmoco.evaluate.frozen_encoder import FrozenEncoder
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.build import build_model
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.schedules import base_learning_rate, learning_rate
from fastmoco.pipelines.augment import uses_kornia
from fastmoco.pipelines.build import AUTO, build_loader, resolve_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader, streamed_shards
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    newest_checkpoint,
    restore_module,
    restore_optimizer,
    under_prefix,
    with_prefix,
)
from fastmoco.runs.checkpoint_files import CheckpointError
from fastmoco.runs.distributed import loader_threads, of_all
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.acceleration import CudaRecording, GraphedStep, resolve_cuda_graph
from fastmoco.train.compilation import resolve_compile
from fastmoco.train.key_orders import KeyOrders
from fastmoco.train.metrics import MetricsSum
from fastmoco.train.normalization import normalization
from fastmoco.train.settings import Compile, CudaGraph, Gradients, TrainConfig
from fastmoco.train.step import TrainStep
from fastmoco.weights.start import StartWeights


class Trainer:
    """The parts of one run and its progress; built on the device, from the seed.

    Attributes:
        cfg: Configuration of the run.
        run: Folder of the run.
        dataset: Images to learn from.
        device: Device of this rank.
        ranks: Ranks that train.
        channel_mean: Channel means that normalize views, in 0..1.
        channel_std: Channel standard deviations that normalize views, in 0..1.
        step: Model, optimizer and loss scaler.
        metrics: Sum of the metrics since the last row.
        knn_top1: The monitor's accuracy of the current weights in percent, if it was measured.
        skipped_steps: Steps since the last row that changed nothing.
        start_norm: Euclidean norm of the weights before the first step.
        origins: What the run started from, as JSON values, the oldest first; empty: from nothing.
        steps_per_epoch: Steps of one pass over the dataset.
        steps_done: Steps of the run that are done.
        in_step: Whether a step was begun and is not done: the state is then no checkpoint.
        loader_name: Loader in use; "" until one is opened.
        loader_reason: Reason for that loader.
        compiled: Whether `torch.compile` is used, or why not, for the run's header.
        graph: Whether the step is captured as a CUDA graph, or why not, for the run's header.
        graphed: The step as a CUDA graph, if it is captured.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        run: RunFolder,
        dataset: Dataset,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """Build model, optimizer and step.

        Raises:
            ValueError: If the dataset is smaller than a batch.
            UsageError: If a CUDA graph or `torch.compile` is required and cannot be used.
        """
        self.cfg, self.run, self.dataset = cfg, run, dataset
        self.device, self.ranks = device, ranks
        self.steps_done, self.loader_name, self.loader_reason = 0, "", ""
        self.in_step, self._loader_before = False, ""
        self._by_shard: bool | None = None  # as the dataset says
        self.origins: list[dict[str, Any]] = []
        self.steps_per_epoch = self.plan(epoch=0).num_batches
        graphed, self.graph = resolve_cuda_graph(cfg, device, ranks)
        compiling, self.compiled = False, f"eager (train.gradients={cfg.train.gradients})"
        if not ranks.several or cfg.train.gradients is Gradients.flat:
            compiling, self.compiled = resolve_compile(cfg.train.compile, device, ranks)
        self.step = self._build_step(compiling)
        self._key_orders = KeyOrders(self.plan(epoch=0), ranks, device)
        self.metrics = MetricsSum(device)
        self.knn_top1: float | None = None
        self.skipped_steps, self.start_norm = 0, self.weights_norm()
        self.graphed: GraphedStep | None = None
        if graphed:
            required = cfg.train.cuda_graph is CudaGraph.always
            self.graphed = GraphedStep(self.step, CudaRecording(device), required=required)

    def _build_step(self, compiling: bool) -> TrainStep:
        cfg, device = self.cfg, self.device
        if compiling:
            torch.compiler.reset()  # drop the graphs of an earlier run in this process, its limit
        torch.manual_seed(cfg.seed)
        model = build_model(
            cfg.model,
            cfg.moco,
            self.ranks,
            cfg.train.accumulate,
            num_samples=len(self.dataset),
            view_size=cfg.pipeline.view_size,
        )
        self.channel_mean, self.channel_std = normalization(
            self.dataset, model.query_encoder.backbone, cfg.pipeline
        )
        model = model.to(device).to(memory_format=torch.channels_last)
        model.prepare_for_device(device, cfg.moco.loss)
        return TrainStep(
            model,
            build_optimizer(model.learnable(), cfg.optimizer),
            policy=cfg.policy,
            mean=torch.tensor(self.channel_mean, device=device),
            std=torch.tensor(self.channel_std, device=device),
            precision=cfg.precision,
            compiled=compiling,
            compile_required=cfg.train.compile is Compile.always,
            accumulate=cfg.train.accumulate,
            by_kornia=uses_kornia(cfg.pipeline.augmentation, device),
            gradients=cfg.train.gradients,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the complete run."""
        steps = self.cfg.train.epochs * self.steps_per_epoch
        return min(steps, self.cfg.train.max_steps or steps)

    @property
    def batch_norm(self) -> str:
        """Kind and groups of batch norm on these devices, for the header and the checkpoint."""
        kind, groups = resolve_batch_norm(self.cfg.moco, self.ranks, self.cfg.train.accumulate)
        return f"{kind.value}, {groups} group{'s' if groups > 1 else ''}"

    @property
    def chance_loss(self) -> float:
        """Loss of a random guess in nats; ln(K+1) of InfoNCE."""
        return self.step.model.chance_loss(self.cfg.global_batch_size)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.learning_rate_of(self.steps_done)

    def learning_rate_of(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return learning_rate(
            self.cfg.optimizer,
            step,
            peak=base_learning_rate(self.cfg.optimizer, self.cfg.global_batch_size),
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.cfg.train.epochs,
        )

    @property
    def epoch_ends(self) -> bool:
        """Whether the last step was the last of its epoch."""
        return self.steps_done % self.steps_per_epoch == 0

    @property
    def log_is_due(self) -> bool:
        """Whether a row of metrics follows the last step."""
        return self.finished or self.steps_done % self.cfg.train.log_every_steps == 0

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.steps_done >= self.total_steps

    @property
    def warms_up(self) -> bool:
        """Whether the last step warmed up or was recorded: its time says nothing about others."""
        return self.graphed is not None and self.graphed.warms_up

    def plan(self, *, epoch: int, start_batch: int = 0) -> EpochPlan:
        """Make the order of an epoch, for this rank."""
        return EpochPlan(
            seed=self.cfg.seed,
            epoch=epoch,
            num_samples=len(self.dataset),
            global_batch_size=self.cfg.global_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            start_batch=start_batch,
            shard_ends=streamed_shards(
                self.dataset, self.cfg.global_batch_size, before=self._by_shard
            ),
        )

    def open_loader(self, plan: EpochPlan | None = None) -> ViewLoader:
        """Open the batches from the next step (or of `plan`) to the end of the last epoch.

        Those of a plan have their crops; `take` cuts the others from a resident set on a GPU.
        """
        in_step = plan is None
        epoch, batch = divmod(self.steps_done, self.steps_per_epoch)
        plan = plan or self.plan(epoch=epoch, start_batch=batch)
        device, threads = self.device, loader_threads(self.cfg.pipeline.num_threads)
        spec = LoaderSpec.of(replace(self.cfg.pipeline, num_threads=threads), self.cfg.policy)
        if not self.loader_name:
            names = {"name": self.cfg.pipeline.name, "before": self._loader_before}
            name, reason = resolve_loader(self.dataset, plan, spec=spec, device=device, **names)
            # DALI or memory may be missing on some ranks: all decode in the same way.
            found = list(zip(of_all(name, self.ranks), of_all(reason, self.ranks), strict=True))
            self.loader_name, self.loader_reason = min(found, key=lambda one: one[0] != "beton")
        return build_loader(
            self.dataset,
            plan,
            spec=replace(spec, cut_in_step=in_step),
            stop_epoch=self.cfg.train.epochs,
            device=device,
            name=self.loader_name,
            reads_ahead=in_step,
        )

    def take(self, batch: Batch, learning_rate: float) -> Tensor:
        """Do one step; return its metrics on the device, which the next step may overwrite."""
        schedule_steps, self.in_step = self.cfg.train.epochs * self.steps_per_epoch, True
        model = self.step.model
        model.set_progress(self.steps_done / schedule_steps)
        keys = self._key_orders.of_step(self.steps_done) if model.exchanges_keys else None
        if self.graphed:  # one rank alone, which exchanges nothing
            metrics = self.graphed(batch, learning_rate)
        else:
            metrics = self.step(batch, learning_rate, keys)
        self.metrics.add(metrics)
        self.steps_done, self.knn_top1, self.in_step = self.steps_done + 1, None, False
        return metrics

    @torch.no_grad()
    def weights_norm(self) -> float:
        """Euclidean norm of all trained weights; reads the device."""
        weights: list[Tensor] = [*self.step.model.learnable()]
        return float(torch.stack(torch._foreach_norm(weights)).norm())

    def checkpoint(self) -> Checkpoint:
        """Collect the complete current state."""
        tensors = {
            **with_prefix("model", self.step.model.state_dict()),
            **with_prefix("optimizer", flatten_optimizer(self.step.optimizer)),
            "metrics.total": self.metrics.total,
        }
        facts = {
            "config": config_to_dict(self.cfg),
            "dataset_fingerprint": self.dataset.fingerprint,
            "channel_mean": self.channel_mean,
            "channel_std": self.channel_std,
            "metrics_count": self.metrics.count.item(),
            "start_norm": self.start_norm,
            "knn_top1": self.knn_top1,
            "scaler": self.step.scaler.state(),
            "batch_norm": self.batch_norm,
            "origins": self.origins,
            "by_shard": self.plan(epoch=0).shard_ends is not None,
            "loader": self.loader_name,  # on a GPU `auto` might choose another one on resuming
            "torch_version": torch.__version__,
        }
        return Checkpoint(step=self.steps_done, tensors=tensors, facts=facts)

    def start_from(self, start: StartWeights) -> None:
        """Take over the weights and the normalization of another encoder, in place."""
        self.step.model.start_from(start.state)
        self.start_norm = self.weights_norm()
        self._normalize_by(start.mean, start.std)
        self.origins = [{"weights": start.source, "sha256": start.sha256, "head": start.head}]

    def _normalize_by(self, mean: list[float], std: list[float]) -> None:
        """Normalize views by these, unless configuration or encoder set their own."""
        backbone = self.step.model.query_encoder.backbone
        if not self.cfg.pipeline.channel_mean and not backbone.takes_plain_rgb:
            self.channel_mean, self.channel_std = mean, std
            self.step.mean.copy_(torch.tensor(mean))
            self.step.std.copy_(torch.tensor(std))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint, in place.

        Raises:
            CheckpointError: If it is of another model.
        """
        facts = checkpoint.facts
        restore_module(self.step.model, under_prefix("model", checkpoint.tensors), checkpoint)
        restore_optimizer(self.step.optimizer, under_prefix("optimizer", checkpoint.tensors))
        self._normalize_by(facts["channel_mean"], facts["channel_std"])
        self.metrics.total.copy_(checkpoint.tensors["metrics.total"])
        self.metrics.count.fill_(facts["metrics_count"])
        self.start_norm = facts.get("start_norm", self.start_norm)
        self.step.scaler.restore(facts["scaler"])
        self.origins = facts.get("origins", [])
        self._by_shard = facts.get("by_shard")
        if self.cfg.pipeline.name == AUTO:
            self._loader_before = facts.get("loader", "")
        self.steps_done = checkpoint.step

    def resume(self) -> bool:
        """Restore the newest checkpoint of the run folder, on all ranks; False if there is none.

        Raises:
            CheckpointError: If it is damaged, from another dataset or model, or if batch norm would
                differ on these devices.
        """
        checkpoint = newest_checkpoint(
            self.run.checkpoints, refuse_damaged=self.cfg.checkpoint.refuse_damaged
        )
        if checkpoint is None:
            return False
        self.check_checkpoint(checkpoint)
        self.restore(checkpoint)
        return True

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check that a checkpoint of this run can be continued with these data and devices.

        Raises:
            CheckpointError: If it is from another dataset, or batch norm would differ.
        """
        if checkpoint.facts["dataset_fingerprint"] != self.dataset.fingerprint:
            raise CheckpointError(
                f"{checkpoint.path} was trained on another dataset than {self.dataset.path}; "
                "give that dataset as data.train, or another run_dir or name"
            )
        if checkpoint.facts.get("batch_norm", self.batch_norm) != self.batch_norm:
            raise CheckpointError(
                f"{checkpoint.path} was trained with batch norm {checkpoint.facts['batch_norm']}, "
                f"on {self.ranks.world_size} devices it would be {self.batch_norm}; use as many "
                "devices as before, or set another run_dir or name"
            )

    def frozen_encoder(self) -> FrozenEncoder:
        """Copy the current query encoder, on the device; the copy is eager, not compiled."""
        encoder = copy.deepcopy(self.step.model.query_encoder)
        statistics = {"mean": self.channel_mean, "std": self.channel_std}
        return FrozenEncoder(encoder, self.cfg.pipeline, **statistics).to(self.device)
