"""Work in threads, with results in order. Pillow releases the interpreter lock while it decodes and resizes."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")

ProgressCallback = Callable[[int, int], None]
"""Called with (items done, items in total) from the thread that started the work."""

_CHUNK_SIZE = 8
"""Items that a thread works through at a time."""


def map_in_order(function: Callable[[int], Result], count: int) -> Iterator[Result]:
    """Yield function(0), …, function(count - 1). The threads run only a few chunks ahead of the consumer."""
    worker_count = min(16, os.cpu_count() or 1)

    def run_chunk(start: int) -> list[Result]:
        return [function(i) for i in range(start, min(start + _CHUNK_SIZE, count))]

    starts = iter(range(0, count, _CHUNK_SIZE))
    pool = ThreadPoolExecutor(worker_count, thread_name_prefix="images")
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
