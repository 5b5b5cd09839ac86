"""A run at Weights & Biases, by its own package; nothing here is imported unless it is chosen.

A run that cannot begin there is an error before the first step; what fails later is said once, and
training goes on. W&B gets the configuration, the rows of ``metrics.jsonl`` and what it measures of
the machine; no code, no output of the program and no report of its own errors.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError, first_line
from fastmoco.files import atomic_write_text

PROJECT = "fastmoco"
"""Project of the runs where WANDB_PROJECT is not set."""
ID_FILE = "run-id.txt"
"""Names the run in its folder, so that a resumed run goes on in the same one."""
INSTEAD = "or set WANDB_MODE=offline to log into the run folder, or train.tracker=tensorboard"


def check_wandb() -> None:
    """Check that the package is installed and knows an account, without asking for one.

    Raises:
        UsageError: If not; one line.
    """
    wandb = _package()
    wandb.setup(wandb.Settings(silent=True))
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    if not wandb.login(prompt=False):
        raise UsageError(
            f"train.tracker=wandb finds no account; log in by `wandb login`, {INSTEAD}"
        )


class WandbRun:
    """Rows of a run at W&B, as `event_file.EventFile` has them for TensorBoard.

    Attributes:
        path: ``wandb`` in the run folder.
    """

    def __init__(self, folder: Path, *, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on in the one that the folder names.

        Args:
            folder: ``wandb`` in the run folder.
            config: The configuration, as JSON values.

        Raises:
            UsageError: If W&B cannot be reached, or refuses.
        """
        wandb, self.path = _package(), folder
        self._error: type[Exception] = wandb.Error
        id_file = folder / ID_FILE
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.parent.absolute().name,
                dir=folder.parent,
                config=dict(config),
                id=known,
                resume="allow",
                reinit="create_new",  # beside a run that a program has
                settings=wandb.Settings(
                    silent=True, console="off", save_code=False, disable_git=True
                ),
            )
        except wandb.Error as error:
            reason = f"{first_line(error)}; check network and login"
            raise UsageError(f"train.tracker=wandb cannot begin: {reason}, {INSTEAD}") from error
        self._run.define_metric("*", step_metric="step")
        if known is None:
            atomic_write_text(id_file, f"{self._run.id}\n")

    @property
    def about(self) -> str:
        """Where the run is, for the log."""
        return f"W&B run {self._run.id}, {self._run.url or 'offline; wandb sync uploads it'}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log a row.

        After a resume, steps since the checkpoint come twice: W&B takes nothing back.

        Raises:
            OSError: If W&B cannot take it.
        """
        try:
            self._run.log({"step": step, **values})
        except self._error as error:
            raise OSError(first_line(error)) from error

    def close(self) -> None:
        """End the run, when what was logged is uploaded.

        Raises:
            OSError: If W&B cannot end it.
        """
        try:
            self._run.finish()
        except self._error as error:
            raise OSError(first_line(error)) from error


def _package() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise UsageError(
            "train.tracker=wandb needs wandb; install it: pip install 'wandb>=0.31', or set "
            "train.tracker=tensorboard"
        ) from error
    return wandb
