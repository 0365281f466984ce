"""`TaskBank`: thousands of `.nola` files in memory beside one base model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from nola_codec.adapters import dialect_of
from nola_codec.api.arguments import require_source
from nola_codec.api.live_sources import unwrap
from nola_codec.arrays import TorchArrays, arrays_on
from nola_codec.container.limits import Limits, resolve_limits
from nola_codec.container.reader import Container, Source
from nola_codec.errors import AdapterError, NolaError, mismatch
from nola_codec.integrations.live_models import name_of
from nola_codec.integrations.task_bank.applying import (
    Applier,
    ApplyHook,
    HookApplier,
    ModelApplier,
    module_of,
    require_pairs,
)
from nola_codec.integrations.task_bank.factor_cache import FactorCache
from nola_codec.integrations.task_bank.packed import FilePacker
from nola_codec.integrations.task_bank.rebuilding import RebuiltTask, rebuild_any, rebuild_pairs
from nola_codec.integrations.task_bank.stacking import StackedFactors, stack_pairs
from nola_codec.integrations.task_bank.tasks import Task, TaskTable
from nola_codec.integrations.task_bank.usage import BankUsage, TaskUsage
from nola_codec.kernels.triton.availability import uses_triton
from nola_codec.merger.memory_change import plan_pairs
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.places import WeightShapes
from nola_codec.references.finding import References
from nola_codec.sizes import parse_size

if TYPE_CHECKING:
    import torch

MAX_PACKED_BYTES = 16 << 30
"""The most bytes of all packed files together, unless the caller says otherwise: 16 GiB."""
MAX_TASK_BYTES = 4 << 30
"""The most bytes that one task may take when it is decoded, unless the caller says otherwise: 4 GiB."""


class TaskBank:
    """Thousands of `.nola` files in memory beside one base model, one of which is applied to it.

        with nola_codec.TaskBank(model, memory="256MB") as bank:
            bank.add("poems", "poems.nola")
            bank.switch("poems")

    A file stays in memory as it is on disk. It is rebuilt when it is asked for, and rebuilt tasks are kept in a cache.
    All methods may be called from any thread. While one thread computes with the model, another one may switch it:
    `use` keeps others from it.

    Attributes:
        model: The base model, as it was given.
    """

    def __init__(
        self,
        base_model: torch.nn.Module,
        *,
        device: torch.device | str | None = None,
        memory: int | str = "256MB",
        apply: Literal["side", "merged"] | ApplyHook = "side",
        dtype: torch.dtype | None = None,
        max_packed_bytes: int = MAX_PACKED_BYTES,
        max_task_bytes: int = MAX_TASK_BYTES,
        limits: Limits | None = None,
        packed_on: Literal["device", "host"] | None = None,
    ) -> None:
        """Take a base model. Nothing is changed in it.

        Args:
            base_model: A model of Transformers or Diffusers, or any module whose weights have the names that the files
                use; it may be compiled. Of a model with adapters of PEFT, the bank changes the base model; adapters of
                PEFT that are active add to what the bank applies.
            device: The device that files are rebuilt on, and that `factors` returns tensors on; it changes no bit of
                what is rebuilt. None is that of the model.
            memory: The most bytes of rebuilt tasks in the cache, as a number or as ``"256MB"``.
            apply: ``"side"`` runs the factors beside the modules, and leaves weights alone; what is no pair of factors
                is merged into its weight. ``"merged"`` merges everything, with the bits of ``decode --base``: the model
                then computes as fast as without a task, and a switch takes longer. A function is called as
                ``apply(name, factors)`` at each switch, and the model is not touched; see `ApplyHook`.
            dtype: The dtype of the factors that run beside modules or are handed out; None is that of each weight.
            max_packed_bytes: The most bytes of all files together.
            max_task_bytes: The most bytes of one decoded task, with 2 bytes for each element of a factor.
            limits: What a file may declare; as in `nola_codec.load`.
            packed_on: ``"device"`` keeps the coefficients of the files on the device as packed bytes, and rebuilds a
                task from there; ``"host"`` keeps whole files in the memory of the processor. None chooses the device
                where the Triton kernels run on it; elsewhere that takes longer. It changes no bit.

        Raises:
            NolaError: ``option``.
            MissingPackage: ``needs-torch``.
        """
        import torch

        model = unwrap(base_model)
        if not isinstance(model, torch.nn.Module):
            message = mismatch("base_model", "a torch.nn.Module", type(base_model).__name__)
            raise AdapterError(message, code="source-type")
        if apply not in ("side", "merged") and not callable(apply):
            raise NolaError(mismatch("apply", '"side", "merged" or a function', repr(apply)), code="option")
        if dtype is not None and not dtype.is_floating_point:
            raise NolaError(mismatch("dtype", "a floating-point dtype", dtype), code="option")
        if packed_on not in (None, "device", "host"):
            raise NolaError(mismatch("packed_on", '"device" or "host"', repr(packed_on)), code="option")
        budget = parse_size(memory) if isinstance(memory, str) else memory
        if budget < 0:
            raise NolaError(mismatch("memory", "0 bytes or more", budget), code="option")
        self.model = base_model
        self._memory = MemoryModel(model)
        self._base = WeightShapes.of(self._memory)
        self._device = _device_of(self._memory) if device is None else torch.device(device)
        on_device = uses_triton(self._device.type) if packed_on is None else packed_on == "device"
        self._xp = TorchArrays(self._device) if on_device else arrays_on(self._device)
        self._dtype, self._most_task = dtype, max_task_bytes
        self._applier: Applier = (
            HookApplier(apply, self._memory, dtype, self._device)
            if callable(apply)
            else ModelApplier(self._memory, dtype, beside=apply == "side")
        )
        self._packer = FilePacker(resolve_limits(limits), self._device if on_device else None)
        self._cache = FactorCache(budget)
        self._tasks = TaskTable(max_packed_bytes, self._cache.discard)
        self._prefetcher: ThreadPoolExecutor | None = None
        self._applying = threading.RLock()  # while the model is changed, or must not be

    @property
    def current(self) -> str | None:
        """The name of the task that is applied; None if it is the base model."""
        task = self._tasks.current
        return None if task is None else task.name

    def names(self) -> list[str]:
        """Return the names of all tasks, in the order in which they were added."""
        return [task.name for task in self._tasks.all()]

    def add(
        self,
        name: str,
        file: Source,
        *,
        rung: int | None = None,
        references: References = None,
        replace: bool = False,
    ) -> None:
        """Read a file into memory, and check that it fits the model.

        The content SHA-256 is compared here, and the decoded SHA-256 when the task is rebuilt for the first time. A
        file that has more than pairs of factors of PEFT is decoded here, since only that tells what it changes. If this
        fails, nothing is added.

        Args:
            name: The name of the task.
            file: The `.nola` file: a path, a URL, bytes or a binary stream.
            rung: The rung of a progressive file, counted from 0; None is the last.
            references: Where the earlier version is that the file needs, if it was encoded against one; as in
                `nola_codec.decode`. The earlier versions are read into memory too.
            replace: True to replace the task of that name, unless it is applied.

        Raises:
            AdapterError: ``task-exists``, ``task-active``; ``limit``: the file is too large, or all files together;
                ``base-mismatch`` and others: it does not fit the model, or it cannot be merged
                (`nola_codec.NolaFile.merge_into`); ``not-nola``, ``source-type``, ``unknown-rung``.
            FormatError, ChecksumMismatch: The file is damaged, or an earlier version is missing.
            RemoteError, OSError: The file cannot be read.
        """
        if not name:
            raise NolaError(mismatch("name", "a text that is not empty", repr(name)), code="option")
        require_source(file)
        self._tasks.require_free(name, replace=replace)
        where = name_of(file)
        with self._packer.open(file, rung) as container:
            self._require_small(container)
            header = container.header
            dialect_of(header, where).require_mergeable(where)
            places = plan_pairs(header, self._memory, self._base)
            left = self._tasks.most_bytes - self._tasks.packed_bytes
            task = Task(name, self._packer.pack(container, references, left), self._tasks.shared(places))
        rebuilt = None
        if places is None:
            rebuilt = self._make(task, where)
            kinds = {weight: pair.kind for weight, pair in rebuilt.pairs.items()}
        else:
            by_name = {record.name: record.kind for record in header.pairs}
            kinds = {weight: by_name[place.module] for weight, place in places.items()}
        _within(where, lambda: self._applier.check(kinds, None if rebuilt is None else rebuilt.rest))
        self._tasks.insert(task, replace=replace)
        if rebuilt is not None:
            self._cache.put(task, rebuilt)

    def remove(self, name: str) -> None:
        """Remove a task from memory.

        Raises:
            AdapterError: ``unknown-task``; ``task-active``: it is applied.
        """
        self._tasks.remove(name)

    def switch(self, name: str | None) -> None:
        """Apply a task in place of the one before; None gives the model the bits of the base model.

        If this fails, the model and the bank stay as they were.

        Args:
            name: The name of the task, or None.

        Raises:
            AdapterError: ``unknown-task``; ``overflow``: a weight or a factor leaves the range of its dtype.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        task, rebuilt = self._prepare(name)
        with self._applying:
            self._enter(task, rebuilt)

    @contextmanager
    def use(self, name: str | None) -> Iterator[torch.nn.Module]:
        """Apply a task, and keep other threads from switching until the block ends.

        The task stays applied after the block, so that the next request for it costs nothing; ``switch(None)`` leaves
        it.

        Args:
            name: The name of the task, or None for the base model.

        Raises:
            AdapterError, FormatError, ChecksumMismatch: As `switch`.
        """
        task, rebuilt = self._prepare(name)
        with self._applying:
            self._enter(task, rebuilt)
            yield self.model

    def factors(self, names: Sequence[str], *, rank: int | None = None) -> dict[str, StackedFactors]:
        """Return the factors of several tasks as stacked tensors, for batched kernels; the model is not touched.

        Args:
            names: The names of the tasks, in the order of the stack. A name may be there several times.
            rank: The rank of all stacks, such as the largest one of a server; None is the largest that the tasks need
                for each module. Components that are zero do not count.

        Returns:
            `StackedFactors` by the path of the module. Modules that none of the tasks changes are left out.

        Raises:
            AdapterError: ``unknown-task``; ``not-expressible``: a task is more than pairs of factors; ``overflow``.
            NolaError: ``rank-limit``: a task needs a larger rank.
            FormatError, ChecksumMismatch: A file is damaged.
        """
        tasks = [self._tasks.find(name) for name in names]
        rebuilt = [self._rebuild(task) for task in tasks]
        for name, each in zip(names, rebuilt, strict=True):
            _within(f"task {name!r}", lambda rest=each.rest: require_pairs(rest))  # type: ignore[misc]
        stacks = {}
        for weight in dict.fromkeys(weight for each in rebuilt for weight in each.pairs):
            dtype = self._dtype or self._memory.parameters[weight].dtype
            made = stack_pairs(rebuilt, weight, dtype, self._device, rank)
            if made is not None:
                stacks[module_of(weight)] = made
        return stacks

    def prefetch(self, names: Iterable[str]) -> Future[None]:
        """Begin to rebuild tasks on another thread, and return at once.

        Tasks that do not fit into the cache together leave it again, the first ones first.

        Returns:
            A future that is done when all are rebuilt, and raises the first error. Nobody needs to wait for it.

        Raises:
            AdapterError: ``unknown-task``.
        """
        with self._tasks.guard:
            self._tasks.require_open()
            tasks = [self._tasks.find(name) for name in names]
            if self._prefetcher is None:
                self._prefetcher = ThreadPoolExecutor(1, thread_name_prefix="nola-prefetch")
            return self._prefetcher.submit(self._rebuild_all, tasks)

    def usage(self) -> BankUsage:
        """Return how much memory the bank takes, by task."""
        rebuilt = self._cache.sizes()
        with self._tasks.guard:
            tasks = {task.name: TaskUsage(task.packed.nbytes, rebuilt.get(task, 0)) for task in self._tasks.all()}
            packed = self._tasks.packed_bytes
        return BankUsage(tasks, packed, sum(rebuilt.values()), self._applier.applied, self._applier.kept)

    def close(self) -> None:
        """Give the model the bits of the base model, and let go of all tasks. A bank that is closed takes no others."""
        with self._applying:
            if self._tasks.is_closed:
                return
            self.switch(None)
            with self._tasks.guard:
                self._tasks.close()
                prefetcher = self._prefetcher
        if prefetcher is not None:
            prefetcher.shutdown(cancel_futures=True)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __enter__(self) -> TaskBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TaskBank({len(self)} tasks, {self._tasks.packed_bytes} bytes packed, {self.current!r} applied)"

    def _prepare(self, name: str | None) -> tuple[Task | None, RebuiltTask | None]:
        """Return a task, rebuilt while other threads may compute with the model; without factors if it is applied."""
        if name is None:
            return None, RebuiltTask({})
        task = self._tasks.find(name)
        return task, None if task is self._tasks.current else self._rebuild(task)

    def _enter(self, task: Task | None, rebuilt: RebuiltTask | None) -> None:
        """Apply a task that was prepared; the caller has the lock of the model."""
        if not self._tasks.enter(task):
            return
        name = None if task is None else task.name
        try:
            if rebuilt is None:  # another thread has left the task since
                rebuilt = self._rebuild(task) if task is not None else RebuiltTask({})
            _within(f"task {name!r}", lambda: self._applier.apply(name, rebuilt))
            self._tasks.current = task
        finally:
            self._tasks.leave()

    def _rebuild(self, task: Task) -> RebuiltTask:
        return self._cache.get(task, lambda: self._make(task, f"task {task.name!r}"))

    def _rebuild_all(self, tasks: Sequence[Task]) -> None:
        errors = []
        for task in tasks:
            if self._tasks.has(task):
                try:
                    self._rebuild(task)
                except NolaError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _make(self, task: Task, where: str) -> RebuiltTask:
        """Decode a task."""

        def make() -> RebuiltTask:
            decoder = task.packed.open(self._xp, self._packer.limits)
            if task.places is None:
                return rebuild_any(decoder, where, self._memory, self._base)
            return rebuild_pairs(decoder, task.places, verify=not task.is_verified)

        made: RebuiltTask = _within(where, make)
        task.is_verified = True
        return made

    def _require_small(self, container: Container) -> None:
        header = container.header
        size = 2 * sum(record.kind.elements for record in header.coded)
        size += sum(record.kind.nbytes for record in header.raw)
        if size > self._most_task:
            message = mismatch("decoded bytes", f"at most {self._most_task}", size)
            raise AdapterError(message, code="limit", where=container.name)


def _within(where: str, act: Callable[[], Any]) -> Any:
    """Call a function, and put the task or the file before an error that does not name it."""
    try:
        return act()
    except NolaError as error:
        if where in str(error):
            raise
        raise error.within(where) from error


def _device_of(memory: MemoryModel) -> torch.device:
    """Return the device of a model; the CPU for a model without numbers."""
    import torch

    found = next((weight.device for weight in memory.parameters.values()), torch.device("cpu"))
    return torch.device("cpu") if found.type == "meta" else found
