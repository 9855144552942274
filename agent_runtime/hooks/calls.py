"""Calls into users' own code: bounded in time, whether it is async or not."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any, Final

MOST_THREADS: Final = 32
"""Calls of functions that are not async, at once; one that never returns keeps its thread."""


class HookCrashed(Exception):  # noqa: N818 - someone else's mistake
    """Own code raised, or took too long. `error` is what it raised, None if it took too long.

    `shown` is what everybody may read: it holds nothing of an exception's text.
    """

    def __init__(self, what: str, error: BaseException | None, *, shown: str = "") -> None:
        super().__init__(what)
        self.error = error
        self.shown = shown or what


def raised(name: str, error: BaseException) -> HookCrashed:
    """Return that own code named `name` raised `error`."""
    return HookCrashed(f"{name} raised {describe(error)}", error, shown=f"{name} failed with {type(error).__name__}")


class Caller:
    """Calls functions of own code. One per agent."""

    def __init__(self) -> None:
        self._threads = asyncio.Semaphore(MOST_THREADS)

    async def call(self, function: Callable[..., Any], *arguments: Any, timeout: float, **named: Any) -> Any:
        """Return what the function returns. Raises HookCrashed for whatever it raises, and after `timeout` seconds.

        A thread cannot be stopped: a function that is not async and takes too long runs on, and nobody listens.
        """
        name = getattr(function, "__name__", "the hook")
        try:
            async with asyncio.timeout(timeout) as deadline:
                if is_async(function):
                    return await function(*arguments, **named)
                return await self._in_thread(lambda: function(*arguments, **named))
        except TimeoutError as error:
            if deadline.expired():
                raise HookCrashed(f"{name} took longer than {timeout:g} s", None) from None
            raise raised(name, error) from error
        except Exception as error:
            raise raised(name, error) from error

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        # Daemon threads, unlike those of an executor, do not keep a process from ending.
        await self._threads.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            self._threads.release()
            if done.done():
                return
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

        def run() -> None:
            value: Any = None
            error: Exception | None = None
            try:
                value = work()
            except StopIteration as stop:  # a future cannot carry it
                error = RuntimeError(f"StopIteration: {stop}")
            except Exception as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:  # the process ended meanwhile
                return

        threading.Thread(target=run, name="own-code", daemon=True).start()
        return await done


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
