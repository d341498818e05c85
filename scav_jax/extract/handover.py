"""Large arrays from one process to another: memory that changes hands instead of bytes in a pipe.

The frames of a clip are tens of megabytes, and one process reads what dozens send. The sender
writes them into a file without a name and sends its descriptor; the receiver maps it. Nothing is
left behind when either is killed, and no limit of /dev/shm applies (containers have 64 MB of it).
"""

import mmap
import os
import pickle
import socket
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

SMALL_BYTES = 2**16  # a pipe takes these without waiting for its reader


@dataclass(frozen=True)
class Parcel:
    """A pickled object whose arrays lie one behind the other in a nameless file.

    Attributes:
      content: the pickle, without the arrays.
      sizes: of the arrays, in bytes.
    """

    content: bytes
    sizes: tuple[int, ...]

    def open(self, pipe: Connection) -> Any:
        """The object; its arrays are read-only views of memory that goes when they do."""
        with _socket_of(pipe) as end:
            _, descriptors, _, _ = socket.recv_fds(end, 1, 1)
        if not descriptors:
            raise EOFError
        (descriptor,) = descriptors
        try:
            mapped = memoryview(mmap.mmap(descriptor, sum(self.sizes), prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)
        buffers, begin = [], 0
        for size in self.sizes:
            buffers.append(mapped[begin : begin + size])
            begin += size
        return pickle.loads(self.content, buffers=buffers)


def pack(value: Any) -> Any:
    """`value` itself if it is small, else (its parcel, the descriptor of the file)."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    sizes = tuple(view.nbytes for view in views)
    if sum(sizes) <= SMALL_BYTES:
        return value
    descriptor = _nameless_file()
    with open(descriptor, "wb", buffering=0, closefd=False) as file:
        for view in views:
            while view.nbytes:
                view = view[file.write(view) :]  # at most 2 GiB go at once
    return Parcel(content, sizes), descriptor


def send(pipe: Connection, packed: Any) -> bool:
    """Sends what `pack` made, without waiting for its reader; whether it was a parcel.

    Not by `multiprocessing.reduction`, whose sender waits for an answer from Python 3.14 on.
    """
    if not (isinstance(packed, tuple) and isinstance(packed[0], Parcel)):
        pipe.send(packed)
        return False
    parcel, descriptor = packed
    try:
        pipe.send(parcel)
        with _socket_of(pipe) as end:
            socket.send_fds(end, [b"\0"], [descriptor])
    finally:
        os.close(descriptor)
    return True


def _socket_of(pipe: Connection) -> socket.socket:
    """A duplex pipe is a pair of sockets, of which one end is opened anew."""
    return socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("scav_jax")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
