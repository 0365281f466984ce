"""Run independent pieces of NumPy work on threads, with one BLAS thread for each.

BLAS's own threads gain nothing on the small matrices here. They also spin while they wait, which costs more than the
work on a busy machine. Results are collected in order, and no result depends on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


class _OneBlasThread:
    """A context manager that limits BLAS to one thread for the whole process.

    The first user sets the limit on entering, and the last one lifts it on leaving, whatever threads they run on. If
    each user had a limiter, one would restore the limit of the other.

    From version 3.8 on, threadpoolctl lets only the first thread that sets a limit do so, and silently ignores all
    others as long as that thread lives. The limit is therefore set and lifted on new threads that end at once. A limit
    that the caller holds stays in force.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._controller: ThreadpoolController | None = None
        self._limiter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                _run_on_a_thread(self._limit)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _run_on_a_thread(self._limiter.restore_original_limits)

    def _limit(self) -> None:
        from threadpoolctl import ThreadpoolController  # here, since reading a header needs no threads

        if self._controller is None:
            self._controller = ThreadpoolController()
        self._limiter = self._controller.limit(limits=1, user_api="blas")


def _run_on_a_thread(function: Callable[[], None]) -> None:
    """Call `function` on a new thread that ends before this returns."""
    thread = Thread(target=function)
    thread.start()
    thread.join()


_ONE_BLAS_THREAD = _OneBlasThread()


def one_blas_thread() -> AbstractContextManager[None]:
    """Return a context manager that gives BLAS one thread, for work that calls `parallel_map` many times in a row."""
    return _ONE_BLAS_THREAD


def worker_count() -> int:
    """Return the number of threads to use: NOLA_THREADS, else the processors of this process, but at most 8."""
    chosen = os.environ.get("NOLA_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, available)


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, uses_blas: bool = True, most: int | None = None
) -> Iterator[Result]:
    """Map a function over items on threads, and yield the results in the order of the items.

    The caller's thread takes the items from their iterator while other threads work. At most two results for each
    thread wait to be taken, which bounds memory; with `most`, at most so many items are worked on or wait. If there is
    only one item or one thread, the caller's thread does the work. An error of an item, or of the iterator, is raised
    where its result would come. BLAS has one thread from the time the first result is asked for until the last one is
    taken or the iterator is closed; that takes a millisecond, which a function that does not use BLAS need not spend.

    Example:
        >>> list(parallel_map(abs, [-2, 1, -3]))
        [2, 1, 3]
    """
    from concurrent.futures import ThreadPoolExecutor

    source = iter(items)
    begun = list(islice(source, 2))
    if not begun:
        return
    with _ONE_BLAS_THREAD if uses_blas else nullcontext():
        if len(begun) == 1 or worker_count() == 1:
            yield from map(function, chain(begun, source))
            return
        limit = 2 * worker_count() + 1 if most is None else most
        with ThreadPoolExecutor(min(limit, worker_count())) as pool:
            ahead: deque[Future[Result]] = deque()
            failure: Exception | None = None
            rest = chain(begun, source)
            while failure is None:
                try:
                    ahead.append(pool.submit(function, next(rest)))
                except StopIteration:
                    break
                except Exception as error:  # the results of earlier items come first
                    failure = error
                if len(ahead) >= limit:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
            if failure is not None:
                raise failure


def parallel_each(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call `function` on every item. Each thread takes the next item when it is free.

    Items are made one by one as they are taken, so that all of them together may be larger than memory. The first
    error is raised, and no item is taken after it.
    """
    iterator = iter(items)
    lock = Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while True:
            try:
                with lock:
                    if errors:
                        return
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                function(item)
            except BaseException as error:  # an interrupt is caught as well: the caller's thread is one of the workers
                errors.append(error)
                return

    with _ONE_BLAS_THREAD:
        threads = [Thread(target=work, daemon=True) for _ in range(worker_count() - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
