"""Work in threads, results in order: Pillow lets go of the interpreter while it decodes and resizes."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")
_CHUNK_SIZE = 8


def map_in_order(function: Callable[[int], Result], count: int) -> Iterator[Result]:
    """Yield work(0), …, work(count - 1), some chunks ahead of the consumer and no further."""
    worker_count = min(16, os.cpu_count() or 1)

    def run_chunk(start: int) -> list[Result]:
        return [function(i) for i in range(start, min(start + _CHUNK_SIZE, count))]

    starts = iter(range(0, count, _CHUNK_SIZE))
    pool = ThreadPoolExecutor(worker_count, thread_name_prefix="pictures")
    try:
        pending: deque[Future[list[Result]]] = deque(
            pool.submit(run_chunk, start) for start in islice(starts, 3 * worker_count)
        )
        while pending:
            results = pending.popleft().result()
            pending.extend(pool.submit(run_chunk, start) for start in islice(starts, 1))
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)
