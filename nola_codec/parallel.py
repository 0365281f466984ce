"""Threads over independent pieces of NumPy work, one BLAS thread each.

BLAS's own threads gain nothing on the small matrices here and spin while they wait, which on a busy machine costs more
than the work. Results are collected in order, and no result depends on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def workers() -> int:
    """Threads to use: the processors this process may run on, at most 8; NOLA_THREADS overrides it."""
    chosen = os.environ.get("NOLA_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, available)


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on threads, in order; at most two results a thread wait to be taken, which bounds memory."""
    work = list(items)
    with _controller().limit(limits=1, user_api="blas"):
        if len(work) <= 1 or workers() == 1:
            yield from map(function, work)
            return
        with ThreadPoolExecutor(workers()) as pool:
            ahead: deque[Future[Result]] = deque()
            for item in work:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * workers():
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
