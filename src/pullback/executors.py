"""An executor over a Ray cluster: for blocks of work that one machine is too small for."""

from __future__ import annotations

import functools
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from pullback import _checks

_AGAIN = 1.0  # seconds until a cancelled call is told again: a worker that is not quite in it misses the first word
_KEPT = 4  # shared values that a worker holds: a graph and a metric, and those of the call before


class RayExecutor(Executor):
    """A ``concurrent.futures`` executor whose calls run on a Ray cluster: on many machines, and whichever of them stay.

    Calls whose worker or machine is lost are made again elsewhere, and results that were lost with it, too. What is
    given to :meth:`share` is sent to each machine once and read by a worker process once. All machines need this
    package, in the same version.

    A connection that the executor opens is closed by :meth:`shutdown`; when an error leaves a ``with`` block, what is
    unfinished is cancelled. :meth:`~concurrent.futures.Future.cancel` also ends calls that have begun. NumPy arrays
    come back read-only: they lie in Ray's store.

    Args:
        address: Of the cluster, as for ``ray.init``; "auto" for the one that this machine belongs to. Default: the
            cluster that this process is connected to; else that of the variable ``RAY_ADDRESS``; else one of this
            machine alone.
        num_cpus: Cores that a call takes; also the threads of its operations, 1 for less.
        num_gpus: GPUs that a call takes, or a share of one.
        max_in_flight: Calls that are handed to Ray at a time; others wait here. Default: twice as many as the
            cluster can run when the executor is made.
        max_retries: How often a call is made again after its worker or machine was lost; -1 for no limit. What a
            call raises is never retried.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no cluster at the address.
        ValueError: A setting is out of range, or this process is connected to another cluster.
        RuntimeError: On calls after :meth:`shutdown`.

    Warns:
        PullbackWarning: When no machine of the cluster has what a call takes: calls wait for one that has.

    Reference:
        Moritz et al. (2018), Ray: a distributed framework for emerging AI applications. :cite:`ray`

    Example, with ``pip install "pullback[ray,zarr]"``::

        with pb.RayExecutor("auto") as executor:
            distances = pb.distance_matrix(metric, codes, out="distances.zarr", executor=executor)

            shared = executor.share(metric)  # other calls: the decoder goes to each machine once
            lengths = executor.map(pb.distance, [shared] * 10, starts, ends)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        max_in_flight: int | None = None,
        max_retries: int = 3,
    ) -> None:
        ray = _ray()
        self._takes = {"CPU": num_cpus, "GPU": num_gpus}
        if min(self._takes.values()) < 0 or max(self._takes.values()) <= 0:
            raise ValueError(f"`num_cpus` is {num_cpus}, `num_gpus` {num_gpus}: want neither below 0, nor both 0.")
        if max_in_flight is not None:
            _checks.at_least(max_in_flight, 1, "max_in_flight")
        _checks.at_least(max_retries, -1, "max_retries")
        self._connected = _connect(address)
        self._function = ray.remote(_call).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries, retry_exceptions=False
        )
        self.max_in_flight = max_in_flight if max_in_flight is not None else 2 * self.max_workers
        self._warn_of_what_is_missing()
        self._lock = threading.RLock()
        self._waiting: deque[_Promise] = deque()
        self._flying: set[_Promise] = set()
        self._arrivals: SimpleQueue[tuple[_Promise, Future[Any]] | None] = SimpleQueue()
        self._closed = False
        self._collector = threading.Thread(target=self._collect, name="pullback-ray", daemon=True)
        self._collector.start()

    @property
    def max_workers(self) -> int:
        """How many calls the machines that are there now can run at once, at least 1."""
        there = _ray().cluster_resources()
        return max(1, min(int(there.get(kind, 0) // amount) for kind, amount in self._takes.items() if amount))

    def share(self, value: Any) -> Shared:
        """Something that many calls need, put into Ray's store once: a metric, a graph, codes.

        Given to :meth:`submit` as an argument, the call gets the value. It is freed when the returned object is.
        """
        return Shared(_ray().put(value))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of ``fn(*args, **kwargs)``, called in a worker; arguments from :meth:`share` arrive as their values.

        What cannot be pickled is an error of the future.
        """
        promise = _Promise(self, (fn, args, kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("this RayExecutor was shut down: make a new one.")
            self._waiting.append(promise)
            self._launch()
        return promise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and close the connection that was opened here once the last one is done.

        Args:
            wait: Return only then.
            cancel_futures: Give up all that is unfinished, also what has begun.
        """
        with self._lock:
            self._closed = True
            unfinished = [*self._waiting, *self._flying] if cancel_futures else []
        for promise in unfinished:
            promise.cancel()
        self._arrivals.put(None)
        if wait:
            self._collector.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(wait=True, cancel_futures=kind is not None)

    def _launch(self) -> None:
        """Hand calls to Ray as long as there is room. Holds the lock."""
        while self._waiting and len(self._flying) < self.max_in_flight:
            promise = self._waiting.popleft()
            self._flying.add(promise)
            if promise.cancelled():
                self._arrivals.put((promise, Future()))
                continue
            try:
                promise.reference = self._function.remote(*promise.call)
            except Exception as error:  # of whatever kind: it belongs to whoever waits for this call
                failed: Future[Any] = Future()
                failed.set_exception(error)
                self._arrivals.put((promise, failed))
                continue
            # Ray calls back in a thread of its own, which must not wait for anything: it only leaves a note
            promise.reference.future().add_done_callback(functools.partial(self._arrived, promise))

    def _arrived(self, promise: _Promise, found: Future[Any]) -> None:
        self._arrivals.put((promise, found))

    def _collect(self) -> None:
        """Settle what arrives and launch what waits, in a thread, until all is done after a shutdown."""
        while True:
            with self._lock:
                if self._closed and not self._waiting and not self._flying:
                    break
                given_up = [promise.reference for promise in self._flying if promise.cancelled() and promise.reference]
            try:
                arrival = self._arrivals.get(timeout=_AGAIN if given_up else None)
            except Empty:
                for reference in given_up:
                    _ray().cancel(reference)
                continue
            if arrival is not None:
                promise = arrival[0]
                with self._lock:
                    self._flying.discard(promise)
                    self._launch()  # before the result is looked at: no core waits for that
                promise.settle(arrival[1])
                del promise, arrival  # the next one may be long in coming
        if self._connected:
            _ray().shutdown()

    def _warn_of_what_is_missing(self) -> None:
        there = _ray().cluster_resources()
        for kind, amount in self._takes.items():
            if amount and there.get(kind, 0) < amount:
                warnings.warn(
                    f"a call takes {amount:g} {kind} and the cluster has {there.get(kind, 0):g}: calls wait until a "
                    f"machine with that joins; check num_{kind.lower()}s=.",
                    _checks.PullbackWarning,
                    stacklevel=3,
                )


@dataclass(frozen=True)
class Shared:
    """A value in Ray's store, from :meth:`RayExecutor.share`: an argument for many calls."""

    reference: Any


class _Promise(Future[Any]):
    """A future that can be cancelled until it has a result."""

    def __init__(self, executor: RayExecutor, call: tuple[Any, ...]) -> None:
        super().__init__()
        self.executor, self.call, self.reference = executor, call, None

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        with self.executor._lock:  # it may be on its way to Ray just now
            reference = self.reference
        if reference is not None:
            _ray().cancel(reference)
            self.executor._arrivals.put(None)  # the collector has to look whether it was heard
        return True

    def settle(self, found: Future[Any]) -> None:
        """Take over what Ray has found."""
        self.call, self.reference = (), None
        if not self.set_running_or_notify_cancel():
            return
        error = found.exception()
        if error is None:
            self.set_result(found.result())
            return
        cause = getattr(error, "cause", None)  # what the call raised, as it would have been raised here
        if isinstance(cause, BaseException):
            cause.__cause__ = error  # with the worker's traceback
            error = cause
        self.set_exception(error)


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What runs in a worker."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's & has it: no call could be cancelled
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return fn(*map(_value, args), **{name: _value(value) for name, value in kwargs.items()})


def _value(argument: Any) -> Any:
    return _fetched(argument.reference) if isinstance(argument, Shared) else argument


@functools.lru_cache(maxsize=_KEPT)
def _fetched(reference: Any) -> Any:
    return _ray().get(reference)


def _connect(address: str | None) -> bool:
    """Be connected to a cluster; returns whether the connection is new."""
    ray = _ray()
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise ValueError(
                f"`address` is {address!r} but this process is connected to the Ray cluster {here}: leave `address` "
                "out, or call ray.shutdown() first."
            )
        return False
    ray.init(address=address, include_dashboard=False, logging_level="WARNING")
    return True


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError('RayExecutor needs Ray: pip install "pullback[ray]", or pip install ray.') from error
    return ray
