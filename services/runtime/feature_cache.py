"""Image features kept by content digest, so that a second prompt on the same image skips the backbone."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

Features = TypeVar("Features")


class FeatureCache(Generic[Features]):
    """Least recently used goes first. Safe to use from several threads."""

    def __init__(self, entries: int) -> None:
        """``entries`` 0 keeps nothing."""
        self._entries = entries
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, digest: str) -> Features | None:
        """What is kept under ``digest``, which is then the most recently used."""
        with self._lock:
            found = self._kept.get(digest)
            if found is not None:
                self._kept.move_to_end(digest)
            return found

    def keep(self, digest: str, features: Features) -> None:
        """Keep ``features`` and drop the least recently used beyond the limit."""
        if self._entries == 0:
            return
        with self._lock:
            self._kept[digest] = features
            self._kept.move_to_end(digest)
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
