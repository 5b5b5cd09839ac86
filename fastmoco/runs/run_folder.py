"""``runs/NAME/``: files of a run, and which configuration may write there."""

import errno
import io
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.configuration import config_to_dict
from fastmoco.errors import UsageError, one_line
from fastmoco.files import atomic_write_text, locked
from fastmoco.parsing import read_yaml
from fastmoco.ranks import Ranks
from fastmoco.runs.checkpoint_files import newest_first
from fastmoco.runs.distributed import wait_for_all

LOCK_NAME = ".lock"
CHECKPOINTS = "checkpoints"
BAD_STEPS = "bad-step-*.json"
OUTPUTS = (
    "metrics.jsonl",
    "metrics.jsonl.damaged",
    "views.png",
    "curves.png",
    "baselines.json",
    "verdict.json",
    "report.html",
    "tensorboard",
    "wandb",
)
"""Files of a run without a checkpoint, which the next run replaces."""


@dataclass(slots=True, frozen=True)
class RunFolder:
    """Paths in a run folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Log of everything printed."""
        return self.path / "train.log"

    @property
    def quarantine(self) -> Path:
        """Images of a folder that were left out, with reasons."""
        return self.path / "quarantine.csv"

    @property
    def views(self) -> Path:
        """Picture of the first views."""
        return self.path / "views.png"

    @property
    def curves(self) -> Path:
        """Picture of the metrics."""
        return self.path / "curves.png"

    @property
    def baselines(self) -> Path:
        """What the encoder must exceed, measured before the first step."""
        return self.path / "baselines.json"

    @property
    def verdict(self) -> Path:
        """What came out of the run."""
        return self.path / "verdict.json"

    @property
    def report(self) -> Path:
        """Page for a browser."""
        return self.path / "report.html"

    def bad_step(self, step: int) -> Path:
        """Images and draws of a step that was not finite."""
        return self.path / BAD_STEPS.replace("*", str(step))

    def stacks(self, rank: int) -> Path:
        """What the threads of a rank did when it hung."""
        return self.path / f"stacks-rank-{rank}.txt"

    def bad_steps(self) -> list[int]:
        """The steps that `bad_step` files are of."""
        before, after = BAD_STEPS.split("*")
        names = [path.name for path in self.path.glob(BAD_STEPS)]
        numbers = [name.removeprefix(before).removesuffix(after) for name in names]
        return sorted(int(number) for number in numbers if number.isdigit())

    def read_config(self) -> dict[str, Any]:
        """The values of ``config.yaml``.

        Raises:
            UsageError: If it is missing or no configuration.
        """
        return read_config(self.config)

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Folder of the W&B run."""
        return self.path / "wandb"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was saved: only then must the next run have the same settings."""
        return bool(newest_first(self.checkpoints))


def read_config(path: Path) -> dict[str, Any]:
    """The values of a ``config.yaml``.

    Raises:
        UsageError: If it is missing or no configuration.
    """
    try:
        values = read_yaml(path, _plain_values)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read ({reason}); give a run folder") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no configuration; give a run folder")
    return {str(key): value for key, value in values.items()}


def _plain_values(text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (OmegaConfBaseException, OSError) as error:
        raise ValueError(str(error)) from error


@dataclass(slots=True, frozen=True)
class RunIdentity:
    """A configuration that a run folder belongs to, and its keys that may change."""

    cfg: Any
    """Dataclass instance."""
    free_keys: Collection[str]
    """Dotted keys that may have other values when the run is resumed."""

    def to_yaml(self) -> str:
        """The configuration as ``config.yaml`` holds it."""
        return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(self.cfg)))

    def differences(self, config: Path) -> list[str]:
        """``KEY: OLD there, NEW now`` for each bound key whose value differs in ``config.yaml``.

        Raises:
            UsageError: If the file is damaged.
        """
        new = dict(_flat(config_to_dict(self.cfg)))
        # An option added after the run was made had the value that is its default now, unless the
        # class names another.
        old = self._defaults() | getattr(type(self.cfg), "BEFORE", {})
        old |= self._saved(config)
        return [
            f"{key}: {old.get(key)} there, {new.get(key)} now"
            for key in sorted(old.keys() | new.keys())
            if key not in self.free_keys and old.get(key) != new.get(key)
        ]

    def has_form_of(self, config: Path) -> bool:
        """Whether a file could be the ``config.yaml`` of such a run, with whatever values."""
        try:
            saved = self._saved(config)
        except UsageError:
            return False
        return "run_dir" in saved and saved.keys() <= self._defaults().keys()

    def _saved(self, config: Path) -> dict[str, Any]:
        """The values of a ``config.yaml``, by the names that options have now."""
        former: Mapping[str, str] = getattr(type(self.cfg), "FORMER", {})
        return {former.get(key, key): value for key, value in _flat(read_config(config))}

    def _defaults(self) -> dict[str, Any]:
        return dict(_flat(config_to_dict(type(self.cfg)())))


@contextmanager
def claim_run_folder(
    run: RunFolder, identity: RunIdentity, ranks: Ranks
) -> Iterator[OSError | None]:
    """Lock the folder for this run until the end of the block, and write ``config.yaml``.

    The first rank holds the lock, which Linux frees however the process ends. It writes only after
    all ranks have checked the folder.

    Args:
        run: Folder, made if missing.
        identity: Configuration of the run.
        ranks: All processes of the run.

    Yields:
        None; or why the folder cannot be written, if it has a checkpoint: a finished run may be
        read-only.

    Raises:
        UsageError: If `check_run_folder` refuses it, or another process holds it.
        OSError: If it cannot be written.
    """
    check_run_folder(run, identity)
    wait_for_all(ranks)
    if not ranks.is_first:
        yield None
        return
    with ExitStack() as stack:
        denied = _lock(run, stack)
        if not denied:
            check_run_folder(run, identity)  # another process may have trained here in between
            if not run.has_checkpoint:
                _remove_outputs(run)
            atomic_write_text(run.config, identity.to_yaml())
        yield denied


def _lock(run: RunFolder, stack: ExitStack) -> OSError | None:
    """Lock the folder until the stack is closed, and leave this process's number in it."""
    path = run.path / LOCK_NAME
    try:
        holder = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        in_use = (
            f"{run.path} is in use by another process{one_line(holder and f' ({holder})')}; "
            "wait for it, or set another run_dir or name"
        )
        stack.enter_context(locked(path, in_use=in_use))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and run.has_checkpoint:
            return error
        raise
    with suppress(OSError):  # a full disk
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return None


def check_run_folder(run: RunFolder, identity: RunIdentity) -> None:
    """Refuse a folder with files that are not of this run.

    Settings may change until the first checkpoint, so that a failed start can be corrected.

    Args:
        run: Folder, may be missing.
        identity: Configuration of the run.

    Raises:
        UsageError: If it has a checkpoint of another configuration, naming the keys that differ, or
            other files.
    """
    if run.config.exists() and (run.has_checkpoint or identity.has_form_of(run.config)):
        if run.has_checkpoint and (differing := identity.differences(run.config)):
            raise UsageError(
                f"{run.path} holds a run of another configuration ({'; '.join(differing)}); "
                "give the same options to resume it, or set another run_dir or name for a new run"
            )
    elif run.path.exists() and (not run.path.is_dir() or _has_foreign_files(run.path)):
        raise UsageError(
            f"{run.path} exists and is not a run folder; set run_dir to a new or empty folder"
        )


def _has_foreign_files(path: Path) -> bool:
    """Whether a folder without a run's config has other files than a killed start leaves."""
    ours = (LOCK_NAME, ".config.yaml.partial")
    return any(entry.name not in ours for entry in path.iterdir())


def _remove_outputs(run: RunFolder) -> None:
    for path in [*(run.path / name for name in OUTPUTS), *run.path.glob(BAD_STEPS)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
