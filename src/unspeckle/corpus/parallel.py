"""Work in threads, results in order: Pillow lets go of the interpreter while it decodes and resizes."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")
_CHUNK = 8


def in_order(work: Callable[[int], Result], count: int) -> Iterator[Result]:
    """Yield work(0), …, work(count - 1), some chunks ahead of the consumer and no further."""
    workers = min(16, os.cpu_count() or 1)

    def chunk(start: int) -> list[Result]:
        return [work(i) for i in range(start, min(start + _CHUNK, count))]

    starts = iter(range(0, count, _CHUNK))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    try:
        ahead: deque[Future[list[Result]]] = deque(pool.submit(chunk, start) for start in islice(starts, 3 * workers))
        while ahead:
            ready = ahead.popleft().result()
            ahead.extend(pool.submit(chunk, start) for start in islice(starts, 1))
            yield from ready
    finally:
        pool.shutdown(cancel_futures=True)
