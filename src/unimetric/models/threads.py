"""Parallel calls of one thread each, as many as torch has threads."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Run = Callable[[Sequence[Tensor]], NDArray[np.float32]]
"""Function from n images to vectors [n, E]."""

_restoring = threading.Lock()


class OneThreadCalls:
    """Divide images among parallel calls of one thread each, as many as torch has threads.

    A matrix product may add its terms in another order when the number of threads changes. With one thread per call,
    no bit of the result depends on the number of threads.

    One or a few images would leave threads idle. They are computed in a single call with all threads, if the caller
    allows it and the result for test images is the same to the bit.
    """

    def __init__(self) -> None:
        self._pool: tuple[tuple[int, int], ThreadPoolExecutor] | None = None
        self._exact: dict[int, bool] = {}

    def __reduce__(self) -> "tuple[type[OneThreadCalls], tuple[()]]":
        # Threads can be neither copied nor pickled; a copy starts its own.
        return OneThreadCalls, ()

    def __call__(
        self, run: Run, images: Sequence[Tensor], test_images: Callable[[], Sequence[Tensor]] | None
    ) -> list[NDArray[np.float32]]:
        """Return the results of all calls, in the order of the images, of which there is at least one.

        The function is thread-safe, and its result for an image must not depend on the other images. Numbers of threads
        are compared on the ``test_images``; None uses one thread per call.
        """
        threads = torch.get_num_threads()
        if threads == 1:
            return [run(images)]
        if test_images and 2 * len(images) <= threads and self._threads_are_exact(run, threads, test_images):
            return [run(images)]
        size = -(-len(images) // threads)
        groups = [images[start : start + size] for start in range(0, len(images), size)]
        return list(self._workers(threads).map(run, groups))

    def _threads_are_exact(self, run: Run, threads: int, test_images: Callable[[], Sequence[Tensor]]) -> bool:
        if threads not in self._exact:
            images = test_images()
            expected = self._workers(threads).submit(run, images).result()
            self._exact[threads] = np.array_equal(run(images), expected)
        return self._exact[threads]

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        # A forked process inherits the pool, but not its threads.
        key = (os.getpid(), threads)
        if self._pool is None or self._pool[0] != key:
            pool = ThreadPoolExecutor(threads, "embedding", _use_one_thread, (threads,))
            # A thread that started later would set the number for a moment while others of the program start, too.
            all_started = threading.Barrier(threads)
            list(pool.map(lambda _: all_started.wait(), range(threads)))
            self._pool = key, pool
        return self._pool[1]


def _use_one_thread(threads_elsewhere: int) -> None:
    """Make torch use one thread in the current thread, without changing other threads."""
    with _restoring:
        # Torch initialises a thread's number at its first use, which would overwrite a number set earlier.
        torch.get_num_threads()
        torch.set_num_threads(1)
        # The call above also set the number for future threads. Restore that, in a separate thread because the call
        # applies to its own thread, too.
        restoring = threading.Thread(target=torch.set_num_threads, args=(threads_elsewhere,))
        restoring.start()
        restoring.join()
