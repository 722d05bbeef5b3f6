"""The checksum that rows of a store's file have."""

from __future__ import annotations

import struct
import zlib


def checksum(*values: object) -> int:
    """CRC-32 of values and of where each of them ends."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes | memoryview) else str(value).encode(errors="surrogatepass")
        crc = zlib.crc32(data, zlib.crc32(struct.pack("<Q", len(data)), crc))
    return crc
