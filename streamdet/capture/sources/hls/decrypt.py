"""AES-128 in CBC mode, with which HLS encrypts segments (RFC 8216, 4.3.2.4), by the FFmpeg that PyAV was built with."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import Protocol

from av import _core as av_core

_BLOCK_BYTES = 16


class _Readable(Protocol):
    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


class DecryptedFile:
    """Reads what an encrypted file holds; for one thread.

    Args:
        file: the encrypted one.
        key: 16 bytes.
        vector: 16 bytes, the initialisation vector.

    Raises:
        OSError: this build of FFmpeg gives no access to its AES.
    """

    def __init__(self, file: _Readable, key: bytes, vector: bytes) -> None:
        self._file = file
        self._library = _library()
        self._state = self._library.alloc()
        weakref.finalize(self, self._library.free, self._state)
        self._vector = ctypes.create_string_buffer(vector, _BLOCK_BYTES)
        self._library.init(self._state, key, 8 * _BLOCK_BYTES, 1)
        self._encrypted = b""
        # The last block holds the padding, and which one is the last shows only at the end of the file.
        self._plain = b""
        self._is_at_end = False

    def read(self, size: int) -> bytes:
        """Returns the next bytes, at most `size`; none at the end."""
        while len(self._plain) <= _BLOCK_BYTES and not self._is_at_end:
            data = self._file.read(max(_BLOCK_BYTES, size))
            self._is_at_end = not data
            self._encrypted += data
            whole = len(self._encrypted) - len(self._encrypted) % _BLOCK_BYTES
            self._plain += self._decrypted(self._encrypted[:whole])
            self._encrypted = self._encrypted[whole:]
            if self._is_at_end and self._plain and 0 < self._plain[-1] <= _BLOCK_BYTES:
                self._plain = self._plain[: -self._plain[-1]]
        count = min(size, len(self._plain) - (0 if self._is_at_end else _BLOCK_BYTES))
        data, self._plain = self._plain[:count], self._plain[count:]
        return data

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _decrypted(self, data: bytes) -> bytes:
        plain = ctypes.create_string_buffer(len(data))
        self._library.crypt(self._state, plain, data, len(data) // _BLOCK_BYTES, self._vector, 1)
        return plain.raw


class _Library:
    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(av_core.__file__)
            self.alloc, self.free = library.av_aes_alloc, library.av_free
            self.init, self.crypt = library.av_aes_init, library.av_aes_crypt
        except (OSError, AttributeError):
            raise OSError(0, "this build of PyAV cannot read encrypted segments") from None
        self.alloc.restype = ctypes.c_void_p
        self.free.argtypes, self.free.restype = (ctypes.c_void_p,), None
        self.init.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int
        self.crypt.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int
        )  # fmt: skip
        self.crypt.restype = None


@cache
def _library() -> _Library:
    return _Library()
