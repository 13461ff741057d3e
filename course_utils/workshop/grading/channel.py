"""Messages between two processes: a length of eight bytes, then JSON."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any


class Closed(Exception):  # noqa: N818 (the usual end of a conversation)
    """The other side has ended."""


class TooLate(Exception):  # noqa: N818
    """The other side did not answer in time."""


class Channel:
    """One end of a conversation.

    Args:
        reading: file descriptor to read from.
        writing: file descriptor to write to; may be the same.
        most: bytes of the longest message to read.
    """

    def __init__(self, reading: int, writing: int, most: int = 128 << 20) -> None:
        self._most = most
        self.reading = reading
        self.writing = writing
        self.deadline: float | None = None  # of `time.monotonic`; after it, each call raises `TooLate`

    def send(self, message: Any) -> None:
        """Send what `json.dumps` takes.

        Raises:
            Closed: nobody is there to read it.
            TooLate: the deadline has passed.
        """
        data = json.dumps(message).encode()
        data = struct.pack("Q", len(data)) + data
        try:
            while data:
                self._wait(write=True)
                data = data[os.write(self.writing, data[: 1 << 16]) :]
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def receive(self) -> Any:
        """The next message.

        Raises:
            Closed: the other side has ended.
            TooLate: the deadline has passed.
            ValueError: it is too long, or no JSON.
        """
        (length,) = struct.unpack("Q", self._read(8))
        if length > self._most:
            raise ValueError(f"a message of {length >> 20} MB; the most is {self._most >> 20}")
        try:
            return json.loads(self._read(length))
        except RecursionError:
            raise ValueError("a message that is nested too deep") from None

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            self._wait(write=False)
            try:
                part = os.read(self.reading, min(length, 1 << 20))
            except ConnectionResetError:
                part = b""
            if not part:
                raise Closed
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _wait(self, write: bool) -> None:
        if self.deadline is None:
            return
        left = max(0.0, self.deadline - time.monotonic())
        reading, writing = ([], [self.writing]) if write else ([self.reading], [])
        if not any(select.select(reading, writing, [], left)):
            raise TooLate
