"""A cache of large values, safe to use from several job threads at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Up to `most` values by key, the oldest leaving first; threads that ask for the same value compute it once."""

    def __init__(self, most: int):
        self._most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> T | None:
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._make_room(key)
            self._values[key] = value

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key, made where it is missing; old values leave before, so that both need not fit."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
                self._make_room(key)
            value = make()
            self.put(key, value)
            return value

    def _make_room(self, key: Hashable) -> None:
        while len(self._values) >= self._most and key not in self._values:
            self._making.pop(self._values.popitem(last=False)[0], None)
