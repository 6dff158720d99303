"""Join requests that wait for the same function into one call: whatever comes in while the last call runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Batches(Generic[_In, _Out]):
    """A function of many items, called by many tasks with one each. No item waits while the function is idle.

    The function runs in a thread, so that the event loop can accept requests at the same time; one call runs at a time.

    Args:
        function: from items to one result each.
        weigh: weight of an item, ≥ 1.
        max_weight: largest weight of one call, unless a single item has more.
    """

    def __init__(
        self, function: Callable[[Sequence[_In]], Sequence[_Out]], *, weigh: Callable[[_In], int], max_weight: int
    ):
        self._function, self._weigh, self._max_weight = function, weigh, max_weight
        self._waiting: deque[tuple[_In, asyncio.Future[_Out]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: _In) -> _Out:
        """Return the function's result for an item.

        Raises:
            Exception: what the function raised for the batch.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Out] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                if not batch:  # all clients have left
                    continue
                try:
                    results = await asyncio.to_thread(self._function, [item for item, _ in batch])
                except Exception as error:  # raised by any network; passed on to all that wait for it
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():  # a client may have left
                        future.set_result(result)
        finally:
            self._task = None

    def _take(self) -> list[tuple[_In, asyncio.Future[_Out]]]:
        batch: list[tuple[_In, asyncio.Future[_Out]]] = []
        weight = 0
        while self._waiting:
            item, future = self._waiting[0]
            if future.done():  # its client has left
                self._waiting.popleft()
                continue
            weight += self._weigh(item)
            if batch and weight > self._max_weight:
                break
            batch.append(self._waiting.popleft())
        return batch
