"""What a step sends, in bytes counted by formula, and how long that takes on a given network.

The formulas are compared with the bytes that links counted in ``benchmarks/network.py``. A card is
a rank. "Sent" is by one card; it receives as much.
"""

from dataclasses import dataclass

RESNET50 = 27_966_656  # weights of the preset moco_v2: ResNet-50 and its head
CROP_BYTES = 224 * 224 * 3
DIM = 128


@dataclass(frozen=True, slots=True)
class Network:
    """A link of each card.

    Attributes:
        name: In words.
        bytes_per_second: Rate of a card's share of the link, each way.
        seconds: Latency of one message.
    """

    name: str
    bytes_per_second: float
    seconds: float


SETUPS = ((8, 32), (64, 64))
"""Cards, and images of each in a step: the batches of MoCo v2 (256) and of MoCo v3 (4,096)."""
NETWORKS = (
    Network("NVLink within a machine, 200 GB/s a card", 200e9, 10e-6),
    Network("InfiniBand, 50 GB/s a machine of 8 cards", 50e9 / 8, 20e-6),
    Network("Ethernet, 25 Gbit/s a machine of 8 cards", 25e9 / 8 / 8, 50e-6),
)


def averaged_bytes(cards: int, weights: int = RESNET50, bytes_per_weight: int = 4) -> float:
    """Sent to average gradients: a ring sends ``2 (W - 1) / W`` of them."""
    return 2 * (cards - 1) / cards * weights * bytes_per_weight


def gathered_bytes(cards: int, rows: int, row_bytes: int) -> float:
    """Sent where each card's rows go to every card, in a ring."""
    return float((cards - 1) * rows * row_bytes)


def exchanged_bytes(cards: int, rows: int, row_bytes: int) -> float:
    """Sent where each row goes to one card, which is this one in a W-th of all cases."""
    return (cards - 1) / cards * rows * row_bytes


def step_bytes(cards: int, images: int) -> dict[str, float]:
    """Sent in a step of ResNet-50 with shuffled batch norm, `images` of 224 pixels a card."""
    return {
        "gradients": averaged_bytes(cards),
        "gradients, bf16": averaged_bytes(cards, bytes_per_weight=2),
        "key crops to all cards": gathered_bytes(cards, images, CROP_BYTES),
        "key crops sent once": exchanged_bytes(cards, images, CROP_BYTES),
        "keys to all cards, for the queue": gathered_bytes(cards, images, 4 * DIM + 16),
    }


def table() -> list[str]:
    """Rows of a Markdown table: megabytes, and milliseconds on each network."""
    parts = list(step_bytes(*SETUPS[0]))
    lines = ["| cards | " + " | ".join(parts) + " |", "|---|" + "---:|" * len(parts)]
    for cards, images in SETUPS:
        sent = step_bytes(cards, images).values()
        lines.append(_row(f"{cards} of {images} images, MB", [b / 1e6 for b in sent]))
        for network in NETWORKS[:1] if cards == SETUPS[0][0] else NETWORKS[1:]:
            seconds = [b / network.bytes_per_second + network.seconds for b in sent]
            lines.append(_row(f"{cards}, {network.name}, ms", [1e3 * s for s in seconds]))
    return lines


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:,.1f}" for value in values) + " |"


if __name__ == "__main__":
    print("\n".join(table()))  # noqa: T201
