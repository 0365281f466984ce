"""Threads over NumPy work: order, bounds on memory, errors, and the process-wide limit of BLAS to one thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from nola_codec.parallel import parallel_each, parallel_map, worker_count

WAIT = 20.0
"""Seconds after which a test that waits for another thread fails."""


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use two threads on any machine."""
    monkeypatch.setenv("NOLA_THREADS", "2")


def blas_threads() -> set[int]:
    """Return the thread counts of the BLAS libraries of this process."""
    return {library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()}


def on_a_thread(function: Callable[[], object]) -> None:
    """Call a function on a thread that ends at once, so that no thread keeps control of BLAS."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.fixture
def two_blas_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give BLAS two threads, which it must have again afterwards."""
    np.ones((2, 2)) @ np.ones((2, 2))
    monkeypatch.setattr("nola_codec.parallel._ONE_BLAS_THREAD._controller", None)  # other libraries were loaded since
    limiters: list[Any] = []
    on_a_thread(lambda: limiters.append(ThreadpoolController().limit(limits=2, user_api="blas")))
    assert blas_threads() == {2}
    yield
    on_a_thread(limiters[0].restore_original_limits)


# ---- the number of threads ----


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "13")
    assert worker_count() == 13


@pytest.mark.parametrize("text", ["", "0", "-1", "many"])
def test_a_variable_without_meaning_is_ignored(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    assert worker_count() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert worker_count() == 8


# ---- parallel_map ----


def test_results_keep_the_order_of_the_items() -> None:
    second_ran = threading.Event()

    def wait_for_the_second(item: int) -> int:
        if item == 0:
            assert second_ran.wait(WAIT)  # would fail on one thread
        if item == 1:
            second_ran.set()
        return 10 * item

    assert list(parallel_map(wait_for_the_second, range(9))) == [10 * i for i in range(9)]


def test_one_item_or_one_thread_stays_on_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    own = threading.get_ident()
    assert list(parallel_map(lambda _: threading.get_ident(), [0])) == [own]
    monkeypatch.setenv("NOLA_THREADS", "1")
    assert set(parallel_map(lambda _: threading.get_ident(), range(5))) == {own}


def test_no_items_give_no_results() -> None:
    assert list(parallel_map(abs, [])) == []


def test_results_that_wait_are_bounded() -> None:
    begun: list[int] = []
    results = parallel_map(begun.append, range(100))
    next(results)
    results.close()
    assert len(begun) <= 2 * 2 + 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_items_at_work_and_waiting_are_bounded(most: int) -> None:
    begun: list[int] = []
    results = parallel_map(begun.append, range(100), most=most)
    next(results)
    results.close()
    assert len(begun) <= most


def test_an_error_comes_in_its_turn() -> None:
    def fail_at_three(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item

    results = parallel_map(fail_at_three, range(8))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="3"):
        next(results)


# ---- BLAS ----


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_has_one_thread_while_it_runs_and_its_own_afterwards() -> None:
    assert all(found == {1} for found in parallel_map(lambda _: blas_threads(), range(6)))
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_an_error_gives_blas_its_threads_back() -> None:
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda item: 1 // item, [1, 0, 1]))
    assert blas_threads() == {2}
    with pytest.raises(ZeroDivisionError):
        parallel_each(lambda item: print(1 // item), [0])
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_an_iterator_that_is_left_gives_blas_its_threads_back() -> None:
    results = parallel_map(lambda item: item, range(50))
    next(results)
    assert blas_threads() == {1}
    results.close()
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_one_inside_another_does_not_lift_the_limit() -> None:
    def run_another(item: int) -> set[int]:
        assert list(parallel_map(abs, [-item, item])) == [item, item]
        return blas_threads()

    assert all(found == {1} for found in parallel_map(run_another, range(6)))
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_the_last_of_two_at_once_lifts_the_limit() -> None:
    first_runs, second_is_done = threading.Event(), threading.Event()
    found: list[set[int]] = []

    def run_first() -> None:
        def wait(_: int) -> None:
            first_runs.set()
            assert second_is_done.wait(WAIT)
            found.append(blas_threads())

        list(parallel_map(wait, [0]))

    thread = threading.Thread(target=run_first)
    thread.start()
    assert first_runs.wait(WAIT)
    list(parallel_map(abs, range(4)))  # begins after the first and ends before it
    assert blas_threads() == {1}
    second_is_done.set()
    thread.join(WAIT)
    assert found == [{1}]
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_the_limit_is_lifted_by_another_thread_than_set_it() -> None:
    """A thread that set the limit and still lives cannot keep it."""
    first_may_leave, first_has_left, may_end = (threading.Event() for _ in range(3))
    first_runs = threading.Event()

    def run_first() -> None:
        for _ in parallel_map(abs, [0]):
            first_runs.set()
            assert first_may_leave.wait(WAIT)
        first_has_left.set()
        assert may_end.wait(WAIT)

    thread = threading.Thread(target=run_first)
    thread.start()
    assert first_runs.wait(WAIT)
    results = parallel_map(abs, range(9))
    next(results)
    first_may_leave.set()
    assert first_has_left.wait(WAIT)
    assert blas_threads() == {1}
    results.close()
    assert blas_threads() == {2}
    may_end.set()
    thread.join(WAIT)


@pytest.mark.usefixtures("two_blas_threads")
def test_afterwards_the_caller_can_limit_blas_itself() -> None:
    done, may_end = threading.Event(), threading.Event()

    def run() -> None:
        list(parallel_map(abs, range(4)))
        done.set()
        assert may_end.wait(WAIT)

    thread = threading.Thread(target=run)
    thread.start()
    assert done.wait(WAIT)
    with threadpool_limits(1, user_api="blas"):
        assert blas_threads() == {1}
    may_end.set()
    thread.join(WAIT)


# ---- parallel_each ----


def test_every_item_is_taken_once() -> None:
    taken: list[int] = []
    parallel_each(taken.append, range(200))
    assert sorted(taken) == list(range(200))


def test_items_are_made_one_at_a_time_and_shared_among_threads() -> None:
    making = threading.Lock()
    both = threading.Barrier(2)
    threads: set[int] = set()

    def make() -> Iterator[int]:
        for number in range(2):
            assert making.acquire(blocking=False)  # nobody else is making one
            making.release()
            yield number

    def meet(_: int) -> None:
        both.wait(WAIT)
        threads.add(threading.get_ident())

    parallel_each(meet, make())
    assert len(threads) == 2


def test_nothing_is_taken_after_an_error() -> None:
    taken: list[int] = []

    def make() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        parallel_each(fail, make())
    assert len(taken) <= 2  # at most what the other thread had already taken


def test_an_error_of_the_items_themselves_is_raised() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        parallel_each(abs, make())  # type: ignore[arg-type]
