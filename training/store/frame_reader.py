"""Reads windows out of one Zarr v3 shard without going through zarr for each of them.

zarr takes twice the time that zstd needs for a window of 200 frames of 64x64: an event loop, a task for each chunk, a
copy of each chunk. For the layout that this project writes, plain sharding (Zarr's sharding extension: chunks, then an
index of their offsets and lengths with its CRC-32C at the end of the file), the same bytes are read here by one
`pread`, and each whole chunk is decoded to where it belongs. Any other layout is left to zarr.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import google_crc32c  # zarr depends on it
import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.buffer.cpu import NDBuffer
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation, ZstdCodec

_CHECKSUM_BYTES = 4
_INDEX_ROW_BYTES = 16  # offset and length, uint64 little-endian
_DECODER = Zstd()


class FrameReader:
    """The frames of one episode, open for reading. Safe for use by several threads.

    Args:
        path: folder of a Zarr array, uint8 [T+1, H, W, C], in one shard or one chunk.

    Raises:
        FileNotFoundError: the data file is missing, which zarr would read as zeros.
        Whatever zarr and json raise on damaged files.
    """

    def __init__(self, path: Path) -> None:
        self._array = zarr.open_array(path, mode="r")
        metadata = self._array.metadata
        self._file = path / metadata.encode_chunk_key((0,) * self._array.ndim)
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype
        self._stamp = self._file_stamp()
        self._direct = _is_plain_shard(self._array)
        if self._direct:
            self._chunk_length = self._array.chunks[0]
            self._index = self._read_index()

    @property
    def is_current(self) -> bool:
        """Whether the file is still the one that was opened."""
        try:
            return self._file_stamp() == self._stamp
        except FileNotFoundError:
            return False

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frames [start, stop) as uint8 [stop - start, H, W, C], into `out` if given.

        Raises ValueError for a window outside the episode, an `out` that does not fit, or damaged data.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"there are frames 0 to {self.shape[0]}, asked for {start} to {stop}")
        shape = (stop - start, *self.shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"it is {self.dtype} {shape}, room was made for {out.dtype} {out.shape}")
        if start < stop:
            if self._direct:
                self._read_direct(start, stop, out)
            else:
                self._array.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))
        return out

    def _read_direct(self, start: int, stop: int, out: np.ndarray) -> None:
        length = self._chunk_length
        first, last = start // length, -(-stop // length)
        rows = self._index[first:last]
        begin, end = int(rows[:, 0].min()), int(rows.sum(axis=1).max())
        content = memoryview(self._pread(end - begin, begin))
        scratch: np.ndarray | None = None
        for chunk, (offset, size) in enumerate(rows.tolist(), start=first):
            encoded = content[offset - begin : offset - begin + size]
            low, high = chunk * length, (chunk + 1) * length
            if start <= low and high <= stop:
                _DECODER.decode(encoded, out[low - start : high - start])
                continue
            if scratch is None:
                scratch = np.empty((length, *self.shape[1:]), self.dtype)
            _DECODER.decode(encoded, scratch)
            inside = slice(max(start, low), min(stop, high))
            out[inside.start - start : inside.stop - start] = scratch[inside.start - low : inside.stop - low]

    def _read_index(self) -> np.ndarray:
        """uint64 [num_chunks, 2]: offset and length of each chunk in the file."""
        num_chunks = -(-self.shape[0] // self._chunk_length)
        shards = self._array.shards
        assert shards is not None
        num_bytes = shards[0] // self._chunk_length * _INDEX_ROW_BYTES + _CHECKSUM_BYTES
        file_bytes = self._stamp[0]
        if file_bytes < num_bytes:
            raise ValueError(f"{self._file.name} is too short for its index: {file_bytes} bytes")
        content = self._pread(num_bytes, file_bytes - num_bytes)
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
            raise ValueError("the checksum of the index of chunks is wrong")
        index = np.frombuffer(body, "<u8").reshape(-1, 2)[:num_chunks]
        if (index.astype(np.float64).sum(axis=1) > file_bytes).any():
            raise ValueError("the index names chunks outside the file, or chunks that were never written")
        return index.astype(np.int64)

    def _pread(self, size: int, offset: int) -> bytes:
        descriptor = os.open(self._file, os.O_RDONLY)
        try:
            content = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise ValueError(f"{self._file.name} ends after {offset + len(content)} bytes, {offset + size} are needed")
        return content

    def _file_stamp(self) -> tuple[int, int, int]:
        try:
            status = self._file.stat()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self._file} is missing") from error
        return status.st_size, status.st_mtime_ns, status.st_ino


def _is_plain_shard(array: zarr.Array[Any]) -> bool:
    """Whether the whole array is one shard of zstd chunks that are cut along the first axis only."""
    codecs = getattr(array.metadata, "codecs", ())
    if array.dtype != np.uint8 or array.shards is None or array.shards[0] < array.shape[0] or len(codecs) != 1:
        return False
    sharding = codecs[0]
    return (
        isinstance(sharding, ShardingCodec)
        and array.chunks[1:] == array.shape[1:] == array.shards[1:]
        and [type(codec) for codec in sharding.codecs] == [BytesCodec, ZstdCodec]
        and [type(codec) for codec in sharding.index_codecs] == [BytesCodec, Crc32cCodec]
        and sharding.index_location is ShardingCodecIndexLocation.end
    )
