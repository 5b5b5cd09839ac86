"""What each preset becomes on a card: the table of docs/devices.md, on played devices."""

from pathlib import Path

import torch

from fastmoco.configuration import load_config
from fastmoco.ranks import ALONE
from fastmoco.train.acceleration import resolve_cuda_graph
from fastmoco.train.number_format import with_precision
from fastmoco.train.settings import TrainConfig

CARDS = {70: "V100", 80: "A100", 90: "H100", 120: "RTX 50"}
"""Compute capability: a card that has it."""
FOLDER = Path(__file__).parents[2] / "configs/experiment"


def table() -> list[str]:
    """Precision by card and use of a CUDA graph, a line for the presets that become the same."""
    heads = [f"{card} (sm_{number})" for number, card in CARDS.items()]
    lines = [f"| presets | {' | '.join(heads)} | CUDA graph |", "|---" * (len(CARDS) + 2) + "|"]
    presets = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "own")
    alike: dict[str, list[str]] = {}
    for preset in presets:
        alike.setdefault(_cells(preset), []).append(f"`{preset}`")
    return lines + [f"| {', '.join(names)} | {cells} |" for cells, names in alike.items()]


def _cells(preset: str) -> str:
    cfg = load_config(TrainConfig, [f"experiment={preset}", "data.train=none.beton"])
    every = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    by_card = {torch.cuda.get_device_capability(device): device for device in every}
    devices = [by_card[divmod(number, 10)] for number in CARDS]
    cells = [with_precision(cfg, device).precision.value for device in devices]
    captured, words = resolve_cuda_graph(cfg, devices[0], ALONE)
    graph = "yes" if captured else words.partition("(")[2].rstrip(")")
    return " | ".join([*cells, graph])
