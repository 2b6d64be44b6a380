"""Work of several threads at once."""

import sys
import threading
from collections.abc import Callable


def at_once(work: Callable[[int], object], count: int) -> None:
    """`work(number)` in `count` threads, which Python switches as often as it can; fails where one of them raised."""
    errors: list[Exception] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors, errors
