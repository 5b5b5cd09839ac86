"""Exchange of key crops between ranks, for shuffled batch norm (arXiv:1911.05722, section 3.3).

The official code gathers all images on every device and keeps a part. Here each row is sent once,
to the one rank that encodes it. Who sends what follows from the draw keys of the global batch, so
every host knows it without asking a device.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmoco.draws.host import shuffled_order
from fastmoco.draws.streams import INT64
from fastmoco.moco.collectives import exchange_rows
from fastmoco.ranks import Ranks


class KeyExchange(NamedTuple):
    """Which rank encodes the keys of which images in a step, as one rank sees it.

    N is the batch of a rank. The global batch is put into the order of `shuffled_order`, and each
    rank encodes N contiguous places of it.
    """

    draw_key: Tensor
    """Draw keys of the images at this rank's places, ``(N,)`` int64, on the device."""
    send: Tensor
    """This rank's rows in the order in which they are sent, ``(N,)`` int64, on the device."""
    place: Tensor
    """For each of this rank's places, the number of the received row, ``(N,)`` int64."""
    counts: Tensor
    """See `exchange_rows`; ``(2, world_size)`` int64 in the host's memory."""

    def scattered(self, rows: Tensor) -> Tensor:
        """Send the rows ``(N, ...)`` of own images away; returns those at this rank's places."""
        received: Tensor = exchange_rows(rows[self.send], self.counts, False)
        return received[self.place]

    def returned(self, rows: Tensor) -> Tensor:
        """The inverse of `scattered`."""
        received = torch.empty_like(rows).index_copy_(0, self.place, rows)
        sent = exchange_rows(received, self.counts, True)
        return torch.empty_like(sent).index_copy_(0, self.send, sent)


def key_exchange(draw_keys: INT64, ranks: Ranks, device: torch.device) -> KeyExchange:
    """Plan the exchange of a step; the host does not wait for the device.

    Args:
        draw_keys: Draw keys of the global batch, ``(B,)`` int64; the same on all ranks.
        ranks: Several ranks; each holds B / world_size contiguous images.
        device: Device of this rank.
    """
    count = len(draw_keys) // ranks.world_size
    order = shuffled_order(draw_keys)  # (B,): the image at each place
    holder, places = order // count, np.arange(len(order))
    mine = order[ranks.rank * count :][:count]  # (N,): images at this rank's places
    # Senders go through the places in order, so what comes from one rank is in that order.
    arrival = np.argsort(mine // count, kind="stable")
    place = np.empty_like(arrival)
    place[arrival] = np.arange(count)
    sent = holder == ranks.rank
    counts = np.stack(
        [
            np.bincount(places[sent] // count, minlength=ranks.world_size),
            np.bincount(mine // count, minlength=ranks.world_size),
        ]
    )
    parts = np.stack([draw_keys[mine], order[sent] - ranks.rank * count, place])  # (3, N)
    on_host = torch.from_numpy(parts)
    if device.type == "cuda":
        on_host = on_host.pin_memory()
    draw_key, send, place_of = on_host.to(device, non_blocking=True).unbind()
    return KeyExchange(draw_key, send, place_of, torch.from_numpy(counts))
