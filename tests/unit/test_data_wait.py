"""On a device that is played, only the time for which it is idle counts as waiting."""

from types import SimpleNamespace

import pytest
import torch

from fastmoco.train.data_wait import DataWait

GPU, CPU = torch.device("cuda"), torch.device("cpu")


class PlayedDevice:
    """A clock of the host, and the time until which the device is busy with queued work."""

    def __init__(self):
        self.now = self.busy_until = 0.0

    def mark(self):
        return PlayedMark(self)

    def loader(self, *, waits=0.0, queues=0.0):
        """Gives batches after `waits` seconds, and queues work or a copy of `queues` seconds."""
        while True:
            self.now += waits
            self.busy_until = max(self.busy_until, self.now) + queues
            yield SimpleNamespace(data_wait_seconds=waits)

    def step(self, seconds):
        """Queue a step; the host does not wait for it."""
        self.busy_until = max(self.busy_until, self.now) + seconds

    def finish(self):
        self.now = max(self.now, self.busy_until)


class PlayedMark:
    def __init__(self, device):
        self.device, self.at = device, None

    def record(self):
        self.at = max(self.device.now, self.device.busy_until)

    def query(self):
        return self.device.now >= self.at

    def elapsed_time(self, end_event):
        return 1e3 * (end_event.at - self.at)


def waited(device, loader, steps, step_seconds):
    wait = DataWait(GPU, device.mark)
    for _ in range(steps):
        wait.next(loader)
        device.step(step_seconds)
    device.finish()
    return wait.seconds()


def test_a_host_that_runs_ahead_does_not_wait():
    device = PlayedDevice()
    device.step(1.0)  # the device is a step behind
    assert waited(device, device.loader(waits=0.9), 10, 1.0) == 0


def test_only_the_idle_part_of_a_wait_counts():
    device = PlayedDevice()
    device.step(1.0)
    # Every batch is 1.5 s late, a step takes 1 s: the device is idle for half a second each time.
    assert waited(device, device.loader(waits=1.5), 10, 1.0) == pytest.approx(5.0)


def test_a_late_copy_counts_and_work_on_the_device_does_not():
    device = PlayedDevice()
    assert waited(device, device.loader(waits=1e-6, queues=0.25), 4, 1.0) == pytest.approx(1.0)
    device = PlayedDevice()
    assert waited(device, device.loader(queues=0.25), 4, 1.0) == 0


def test_it_counts_what_the_device_has_passed_and_never_waits_for_it():
    device = PlayedDevice()
    wait = DataWait(GPU, device.mark)
    loader = device.loader(waits=1e-6, queues=3.0)  # a copy of three seconds
    wait.next(loader)
    device.step(1.0)
    assert wait.seconds() == 0  # the copy is not done
    device.finish()
    assert wait.seconds() == pytest.approx(3.0)
    wait.next(loader)
    wait.restart()
    device.finish()
    assert wait.seconds() == 0  # it began before the restart


def test_on_a_cpu_the_wait_is_the_loaders():
    wait = DataWait(CPU)
    loader = iter([SimpleNamespace(data_wait_seconds=0.5)] * 3)
    for _ in range(3):
        wait.next(loader)
    assert wait.seconds() == 1.5
