"""Which options of ``moco.*`` go together: each mechanism refuses what would mean nothing to it.

Not refused are `queue_size`, `momentum` and `final_momentum` where they are not read: a sweep over
mechanisms keeps the other options of its preset.
"""

from dataclasses import fields

from fastmoco.errors import UsageError
from fastmoco.moco.settings import BatchNorm, Head, Loss, Mechanism, MocoConfig

# Options of one mechanism alone.
OWNERS = {
    "negatives": Mechanism.end_to_end,
    "bank_momentum": Mechanism.memory_bank,
    "hidden_dim": Mechanism.moco_v3,
    "pretext": Mechanism.moco,
}

# Why each view is a query once, or never, whatever moco.symmetric says.
NOT_SYMMETRIC = {
    Mechanism.end_to_end: "moco.negatives says there which views are queries",
    Mechanism.memory_bank: "a bank's entry is no view",
    Mechanism.moco_v3: "MoCo v3 always is symmetric",
}


def check_mechanism(moco: MocoConfig, global_batch_size: int) -> None:
    """Refuse what the mechanism cannot do.

    Raises:
        UsageError: One line that names the option to change.
    """
    _check_owners(moco)
    _check_head(moco)
    _check_momentum(moco)
    if moco.mechanism is Mechanism.moco:
        _check_queue(moco, global_batch_size)
        return
    _check_symmetry_and_batch_norm(moco)
    if moco.mechanism is Mechanism.memory_bank:
        _check_bank(moco)
        return
    if moco.loss in (Loss.chunked, Loss.fused):
        raise UsageError(
            f"moco.loss={moco.loss} is for a queue or a bank, and the negatives of "
            f"moco.mechanism={moco.mechanism} are the batch's; set moco.loss=auto"
        )
    if moco.mechanism is Mechanism.moco_v3 and (moco.head is Head.linear or moco.hidden_dim < 1):
        raise UsageError(
            f"moco.head={moco.head} with moco.hidden_dim={moco.hidden_dim} is no head of "
            "moco.mechanism=moco_v3; set moco.head=mlp and moco.hidden_dim, for example, to 4096"
        )


def _check_owners(moco: MocoConfig) -> None:
    defaults = {item.name: item.default for item in fields(MocoConfig)}
    for name, owner in OWNERS.items():
        value = getattr(moco, name)
        if moco.mechanism is not owner and value != defaults[name]:
            raise UsageError(
                f"moco.{name}={value} is an option of moco.mechanism={owner} alone, not of "
                f"{moco.mechanism}; leave it out, or set moco.mechanism={owner}"
            )


def _check_head(moco: MocoConfig) -> None:
    width = moco.head_hidden_dim
    if width < 0:
        raise UsageError(
            f"moco.head_hidden_dim={width} is no width; set it, for example, to 2048, or to 0: as "
            "wide as the feature"
        )
    if width and moco.mechanism is Mechanism.moco_v3:
        raise UsageError(
            f"moco.head_hidden_dim={width} is not for moco.mechanism=moco_v3, whose heads have "
            "moco.hidden_dim; set moco.head_hidden_dim=0"
        )
    if width and moco.head is Head.linear:
        raise UsageError(
            f"moco.head_hidden_dim={width} has no hidden layer to widen in moco.head=linear; set "
            "moco.head=mlp or moco.head_hidden_dim=0"
        )


def _check_momentum(moco: MocoConfig) -> None:
    for name in ("momentum", "final_momentum"):
        value = getattr(moco, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"moco.{name}={value} is outside 0..1; set it, for example, to 0.999")


def _check_queue(moco: MocoConfig, batch: int) -> None:
    keys, of_batch = (2 * batch, "2 x ") if moco.symmetric else (batch, "")
    if moco.queue_size < keys:
        raise UsageError(
            f"queue_size={moco.queue_size} is smaller than {of_batch}global_batch_size={batch}; "
            f"set moco.queue_size={keys} or more"
        )


def _check_symmetry_and_batch_norm(moco: MocoConfig) -> None:
    if moco.symmetric:
        raise UsageError(
            "moco.symmetric=true is an option of moco.mechanism=moco "
            f"({NOT_SYMMETRIC[moco.mechanism]}); set moco.symmetric=false"
        )
    if moco.batch_norm in (BatchNorm.shuffled, BatchNorm.eman) or moco.batch_norm_splits != 1:
        raise UsageError(
            f"moco.batch_norm={moco.batch_norm} with moco.batch_norm_splits="
            f"{moco.batch_norm_splits} is for the key encoder of moco.mechanism=moco, not for "
            f"{moco.mechanism}; set moco.batch_norm=auto, plain or synchronized, and "
            "moco.batch_norm_splits=1"
        )


def _check_bank(moco: MocoConfig) -> None:
    if not 0 <= moco.bank_momentum < 1:
        raise UsageError(
            f"moco.bank_momentum={moco.bank_momentum} is outside [0, 1): entries would not learn; "
            "set it, for example, to 0.5"
        )
    if moco.queue_size < 1:
        raise UsageError(
            f"moco.queue_size={moco.queue_size} draws no negatives from the bank; set it to 1 or "
            "more"
        )
