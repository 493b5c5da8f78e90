"""The processes of a run that torchrun started, and the signals that end a run.

    torchrun --nproc-per-node 2 -m dictionary_learning_ext train …

`Processes` is all that they do together, and `Plan.jobs_of` says which SAEs each of them trains. A single process is
`ONE_PROCESS`: it has rank 0, the methods return what it gives them, and it shares with nobody.

torchrun handles failures: a rank that fails says why and exits, and torchrun ends the others. The first SIGTERM or
SIGINT ends a run at the next safe place, the second ends it at once. With several processes, a signal to one stops all
before the next step or the next passes of the language model. Later signals are ignored, as torchrun sends signals
itself. It kills after 30 seconds.

Imports torch only if there are several processes.
"""

import atexit
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import ConfigError, Interrupted, TrainingError, in_shell
from ..run_folder.files import CONFIG
from ..run_folder.identity import require_alike

if TYPE_CHECKING:
    from ..activations.tokens import Ranks
    from ..trainers.parts import Part

RANK_TIMEOUT = 1800
"""The seconds that a rank waits for the others, e.g. while they evaluate."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Processes:
    """This process's rank, and the number of processes of the run. By default a single process.

    Arguments:
        rank: the rank of this process, from 0. Rank 0 shows progress.
        count: the world size: the number of processes on all machines.
        local_rank: the rank of this process on its machine.
        local_count: the number of processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        return self.count > 1

    @property
    def on_this_machine(self) -> range:
        """The ranks of the processes on this machine."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_count)

    @property
    def command(self) -> str:
        """The beginning of a command that starts the same number of processes; `train` and its flags follow."""
        if not self.are_several:
            return "vsae"
        machines = self.count // self.local_count
        nodes = f"--nnodes {machines} " if machines > 1 else ""
        return f"torchrun {nodes}--nproc-per-node {self.local_count} -m dictionary_learning_ext"

    def is_first_of(self, parts: int | None) -> bool:
        """Whether this process holds the first part of its SAEs, each split into `parts` (None: not split)."""
        return self.rank % (parts or 1) == 0

    def device(self, device: str) -> str:
        """This process's own device. Raises ConfigError if there is none."""
        kind, _, number = device.partition(":")
        if not self.are_several or kind != "cuda":
            return device
        import torch

        devices = torch.cuda.device_count()
        mine = int(number) if number else self.local_rank
        if mine >= devices or (number and self.local_count > 1):
            able = f"device='cuda' with --nproc-per-node {devices}" if devices else "device='cpu'"
            raise ConfigError(
                f"torchrun started {self.local_count} processes on a machine that has {devices} CUDA "
                "devices, and each needs one of its own",
                name="device",
                value=device,
                instead=f"use {able}",
            )
        torch.cuda.set_device(mine)
        return f"cuda:{mine}"

    def largest(self, *numbers: int) -> list[int]:
        """All-reduce by maximum: the largest of each number over the ranks. Every rank must call it."""
        if not self.are_several:
            return list(numbers)
        import torch
        import torch.distributed as dist

        each = torch.tensor(numbers)
        dist.all_reduce(each, dist.ReduceOp.MAX)
        return each.tolist()

    def are_all(self, flag: bool) -> bool:
        """Whether a flag is true on all ranks. Every rank must call it."""
        return not self.largest(not flag)[0]

    def meet(self) -> None:
        """A barrier: wait until every rank has called it."""
        self.largest(0)

    def gather(self, what: Any) -> list[Any]:
        """All-gather: a list of the picklable objects that the ranks give, by rank."""
        if not self.are_several:
            return [what]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, what)
        return gathered

    def require_alike(self, read: Mapping[str, str], instead: str) -> None:
        """Raise a TrainingError on all ranks unless they read the same data. Every rank must call it.

        Arguments:
            read: identifies the data of this rank by name, e.g. {"text": its SHA-256}.
            instead: what to do if they differ.
        """
        of_ranks = {f"rank {rank}": own for rank, own in enumerate(self.gather(read))}
        require_alike(of_ranks, TrainingError, instead)

    @property
    def ranks(self) -> "Ranks":
        """These processes as those of `activations/` that share the language model's passes."""
        from ..activations.tokens import Ranks

        return Ranks(self.rank, self.count, self.gather)

    def parts(self, split: int | None, device: str) -> "Callable[[int], Part]":
        """The part that this process trains of an SAE with this dict_size. Every rank must call it, even one without
        an SAE.

        Arguments:
            split: the number of parts, which as many processes hold; None: SAEs are not split.
        """
        from ..trainers.parts import WHOLE

        if split is None:
            return lambda dict_size: WHOLE
        from ..trainers.split import MeshPart, SplitPart

        if split == 1:
            return SplitPart
        from torch.distributed.device_mesh import init_device_mesh

        shape, axes = (self.count // split, split), ("saes", "features")
        mesh = init_device_mesh(device.partition(":")[0], shape, mesh_dim_names=axes)["features"]
        return lambda dict_size: MeshPart(dict_size, mesh)


ONE_PROCESS = Processes()


def launched() -> Processes:
    """The processes that torchrun has started, or a single process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ONE_PROCESS
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Processes(*(int(os.environ[name]) for name in names))


def resuming_command(folders: Iterable[Path]) -> str:
    """The command that continues the run of these folders in the same number of processes."""
    folder = os.path.commonpath(folders) or "."
    return f"{launched().command} train --resume {in_shell(folder)}"


def require_one_task() -> None:
    """Raise a ConfigError if SLURM's srun has started this command in several tasks.

    wandb's agents may be started so, as each trains another run.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if tasks == 1 or {"TORCHELASTIC_RUN_ID", "WANDB_SWEEP_ID"} & os.environ.keys():
        return
    meeting_point = (
        "--rdzv-backend c10d --rdzv-endpoint $(scontrol show hostnames | head -n 1):29500"
    )
    rendezvous_flags = f"--nnodes {nodes} {meeting_point} " if nodes > 1 else ""
    raise ConfigError(
        f"srun started this command in {tasks} tasks, and each would train the whole run",
        instead=f"to train it once in all of them, use `srun --ntasks={nodes} --ntasks-per-node=1 "
        f"torchrun {rendezvous_flags}--nproc-per-node {-(-tasks // nodes)} -m dictionary_learning_ext train …`; "
        "if each task is to train another run, set SLURM_STEP_NUM_TASKS=1",
    )


def join(timeout: int = RANK_TIMEOUT, parts: int | None = None) -> Processes:
    """Initialise torch.distributed if torchrun has started this process, and wait for the other ranks.

    Ranks other than 0 log only warnings and errors. Of the ranks of a split SAE, only the first logs them.

    Arguments:
        timeout: the seconds that a rank waits for the others, here and later.
        parts: the number of parts of each SAE; None: SAEs are not split.
    """
    processes = launched()
    if not processes.are_several:
        return processes
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if not processes.is_first:
            level = logging.WARNING if processes.is_first_of(parts) else logging.CRITICAL
            logging.getLogger(errors.__package__).setLevel(level)
        has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(dist.destroy_process_group)
    processes.meet()
    return processes


@contextmanager
def saying_if_a_rank_is_lost(again: Callable[[], str]) -> Iterator[None]:
    """Turn torch.distributed's error about a lost rank into a TrainingError.

    Arguments:
        again: called then; returns what the user can do.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        import torch.distributed as dist

        atexit.unregister(dist.destroy_process_group)  # it would wait for the others
        raise TrainingError(
            "another process of the run ended or didn't answer",
            instead=f"see what it said, or torchrun's report, and {again()}",
        ) from error


@contextmanager
def saying_how_to_continue(how: Callable[[], str]) -> Iterator[None]:
    """Add to an interruption inside how to continue, which `how` returns then."""
    try:
        yield
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, f"stopped by {number.name}; {how()}") from stop


def continue_or_start_again(folders: Iterable[Path]) -> str:
    """What the user can do after the run of these folders has lost a rank."""
    folders = list(folders)
    if not all((folder / CONFIG).is_file() for folder in folders):
        return "start it again"
    return f"continue from the last resume point with `{resuming_command(folders)}`"


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether torch.distributed has raised an error. Gloo has no exception class of its own."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("/gloo/", "pair closure")
    )


def is_first_to_say(line: str) -> bool:
    """Whether this rank is the first to print a line. If all ranks fail alike, one of them prints it."""
    if not launched().are_several:
        return True
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    key = hashlib.sha256(line.encode()).hexdigest()
    try:
        return dist.PrefixStore("said", next(iter(rendezvous("env://")))[0]).add(key, 1) == 1
    except dist.DistError:  # torchrun, whose store it is, has ended
        return True


# --- signals


class Interrupts:
    """Remembers a signal until the run can end safely.

    Arguments:
        processes: those of the run.
    """

    def __init__(self, processes: Processes):
        self.received: signal.Signals | None = None
        self._processes, self._is_deferred = processes, False

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived in this process."""
        if self.received is not None:
            raise Interrupted(self.received)

    def check_all(self) -> None:
        """Raise Interrupted on all ranks if a signal has arrived in any. Every rank must call it."""
        self.agree()

    def agree(self, *numbers: int) -> Sequence[int]:
        """`check_all`, and the largest of each number over the ranks."""
        number, *largest = self._processes.largest(self.received or 0, *numbers)
        if number:
            raise Interrupted(signal.Signals(number))
        return largest

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay signals inside until `check` is called. Outside, a signal interrupts at once."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._processes.are_several and self.received is not None:
            return
        self.received = signal.Signals(number)
        if not self._processes.are_several:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        if not self._is_deferred:
            raise Interrupted(self.received)


@contextmanager
def interrupts(processes: Processes = ONE_PROCESS) -> Iterator[Interrupts]:
    """Catch signals inside. In another thread than the main one, Python allows no handlers, and none arrives."""
    caught = Interrupts(processes)
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    former = {each: signal.signal(each, caught.handle) for each in SIGNALS}
    try:
        yield caught
    except BaseException:
        if processes.are_several:
            former = dict.fromkeys(SIGNALS, signal.SIG_IGN)  # this process is about to end
        raise
    finally:
        for each, handler in former.items():  # None: set by C code, and Python can't set it again
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
