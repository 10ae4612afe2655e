"""One process or many: its rank, its device, and what the processes exchange."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.utils.store import synchronize
from torch.distributed.rendezvous import rendezvous

from lensprep.errors import ConfigError, ProjectError, error_line
from lenstrain.training.gpus import Seat, check_seats, find_seat, refuse_unsupported

T = TypeVar("T")

_groups = itertools.count()
"""Numbers the groups that this process joins, in the order in which all processes join them."""

LOST = (
    # gloo, and the system below it and NCCL
    "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe",
    "connection timed out", "timed out waiting", "read timeout", "write timeout", "connect timeout",
    "operation timed out", "caused pair closure",
    # the store in which processes meet
    "wait timeout", "socket timeout", "client socket has timed out", "waiting for clients",
    "barrier timeout", "failed to recv, got 0 bytes",
    # NCCL, and torch's watchdog over it
    "remote process exited", "ncclremoteerror", "connection closed by remote peer",
    "collective operation timeout", "communicator was aborted", "nccl timeout",
)  # fmt: skip
"""What is said, in lower case, when another process is gone or does not answer.

From torch 2.14 and from reports of versions before it. "NCCL error" is none: it may be a wrong
argument, a GPU that two processes share, or memory.
"""
SHARED = "duplicate gpu detected"
"""What NCCL says, in lower case, if two processes have one GPU."""


class LostProcessError(ProjectError):
    """Another process of the run has ended or does not answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """One process among those of the run."""

    device: torch.device
    """Where the model lives."""
    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""
    grouped: bool = False
    """Whether they form a group, as those that torchrun starts do, even a single one."""
    hosts: dist.ProcessGroup | None = None
    """The same processes over gloo: nothing in it waits for a device."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over the processes, in place."""
        if self.grouped:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether one of the processes raised its flag, on every process; waits for no device."""
        if not self.grouped:
            return flag
        raised = torch.tensor(flag, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, self.hosts)
        return bool(raised)

    def gather(self, value: Tensor) -> Tensor:
        """Tensors of equal shape from all processes, one after the other, on every process."""
        if not self.grouped:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """Plain objects from all processes, by rank, on every process."""
        if not self.grouped:
            return [value]
        values: list[Any] = [None] * self.world_size
        # Not through the devices' memory, whose steps it would wait for.
        dist.all_gather_object(values, value, self.hosts)
        return values

    def from_main(self, value: T) -> T:
        """The main process's plain object, on every process."""
        if not self.grouped:
            return value
        values = [value if self.is_main else None]
        # Not through the devices' memory: it may be a whole checkpoint.
        dist.broadcast_object_list(values, 0, self.hosts)
        return cast(T, values[0])

    def decide(self, function: Callable[[], T]) -> T:
        """Call a function in the main process; its result or ProjectError reaches every process.

        So no process waits for one that has given up.
        """
        outcome: T | ProjectError | None = None
        if self.is_main:
            try:
                outcome = function()
            except ProjectError as error:
                outcome = error
        outcome = self.from_main(outcome)
        if isinstance(outcome, ProjectError):
            raise outcome
        return cast(T, outcome)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.grouped:
            dist.barrier()


@contextmanager
def process_group(device: str, timeout_minutes: float, advice: str = "") -> Iterator[Context]:
    """Join the processes that torchrun started, if it did; leave them at the end.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
    timeout_minutes : float
        A process that waits longer for another gives up with an error, so that all end.
    advice : str
        What to do then, for the message.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none that this process can use and has to itself.
    LostProcessError
        If another process ends or does not answer within the block.
    """
    chosen = choose_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 and not dist.is_torchelastic_launched():
        yield Context(device=chosen)
        return
    try:
        timeout = timedelta(minutes=timeout_minutes)
        rank = _join(chosen, timeout)
        hosts: Any = None
        if chosen.type == "cuda":
            hosts = dist.new_group(backend="gloo", timeout=timeout)
        yield Context(device=chosen, rank=rank, world_size=world_size, grouped=True, hosts=hosts)
    except RuntimeError as error:
        name = f"Process {os.environ['RANK']} of {world_size}"
        if SHARED in str(error).lower():
            raise ConfigError(
                f"{name} has no GPU of its own. Start one process for each GPU, or look at "
                "CUDA_VISIBLE_DEVICES."
            ) from error
        if not is_lost(error):
            raise
        raise LostProcessError(
            f"{name} gave up: another one has ended, or did not answer within "
            f"{timeout_minutes:g} minutes ({error_line(error)}). See that process's own message, "
            f"if there is one. {advice}".rstrip()
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has ended or does not answer."""
    return any(words in str(error).lower() for words in LOST)


def _join(device: torch.device, timeout: timedelta) -> int:
    """Join the other processes and return the rank of this one."""
    shared, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # torchrun keeps one store through all restarts, and a process may join one group after another
    # (to train, then to score). Without a prefix of its own a group would find the addresses of
    # processes that are dead, or of the group before, and wait for them.
    attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{next(_groups)}"
    store: Any = dist.PrefixStore(f"attempt-{attempt}", shared)  # type: ignore[attr-defined]
    # Before NCCL, which refuses a shared GPU too, but late and in words for its developers.
    check_seats(_all_seats(find_seat(device), store, rank, world_size, timeout))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return rank


def _all_seats(
    mine: Seat, store: Any, rank: int, world_size: int, timeout: timedelta
) -> list[Seat]:
    """Seats of all processes, by rank; the process that holds the store is the last to go on."""
    seat = json.dumps(astuple(mine)).encode()
    seats = synchronize(store, seat, rank, world_size, "seat", timeout.total_seconds())
    return [Seat(*json.loads(each)) for each in seats]


def launch_id() -> str | None:
    """What this start by torchrun has in common with its restarts; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    # The name alone can be "none"; the agent is the parent of its workers, restarted or not.
    return None if name is None else f"{name}-{os.getppid()}"


def choose_device(device: str) -> torch.device:
    """Device of this process; under torchrun each local process takes its own GPU.

    A process that sees a single GPU takes it: a scheduler may have given each its own. Whether it
    did, `process_group` checks.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none, or none for this process; or if there is one that
        this build of PyTorch has no code for, also for "auto".
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "The device is 'cuda', but PyTorch finds no GPU. Check `nvidia-smi`, or choose "
            "'cpu' or 'auto'."
        )
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if there == 1:
        number = 0
    if number >= there:
        raise ConfigError(
            f"Process {number} of this machine has no GPU of its own: PyTorch finds {there}. Start "
            f"torchrun with --nproc-per-node {there}, or look at CUDA_VISIBLE_DEVICES."
        )
    refuse_unsupported(number)
    chosen = torch.device("cuda", number)
    torch.cuda.set_device(chosen)
    return chosen
