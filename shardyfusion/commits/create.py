"""Create-only writes that survive lost replies: every conditional object of the protocol goes through here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shardyfusion.errors import ObjectExistsError, StorageError, StoreUnavailableError
from shardyfusion.layout import join_url
from shardyfusion.storage import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to repeat a request whose outcome is unknown, and how (arguments, so that tests need not wait)."""

    deadline_seconds: float = 60.0
    pause_seconds: float = 0.2
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def create_once(
    store: ObjectStore, name: str, body: bytes, *, content_type: str, patience: Patience
) -> tuple[bytes, bool]:
    """Create `name`, and return what is stored there with whether it is ours.

    A lost reply shows as "exists" with our own bytes, so what is there is read back; a request whose outcome is unknown
    is sent again, same name and same bytes. `StoreUnavailableError` after the deadline means: it may still land.
    """
    until = patience.clock() + patience.deadline_seconds
    unknown: StorageError | None = None
    while True:
        try:
            store.create(name, body, content_type=content_type)
        except ObjectExistsError:
            try:
                stored = store.get(name).body
            except StorageError as exc:  # not there yet, or not to be read now: it may be ours
                unknown = exc
            else:
                return stored, stored == body
        except StoreUnavailableError as exc:
            unknown = exc
        except StorageError as exc:
            if unknown is None:
                raise
            unknown = exc
        else:
            return body, True
        if patience.clock() >= until:
            raise StoreUnavailableError(
                f"no answer about {join_url(store.url, name)} within {patience.deadline_seconds:g} s: {unknown}"
            ) from unknown
        patience.sleep(patience.pause_seconds)
