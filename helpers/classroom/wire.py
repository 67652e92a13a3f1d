"""Messages between the judge and a worker: values go over, code does not.

The judge trusts itself, so requests are pickled. What a worker answers was chosen by a student: it
is JSON with the numbers of tensors beside it, and nothing of it is ever unpickled.
"""

import json
import pickle
import socket
import struct
import time
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTH = struct.Struct("!Q")  # before every part of a message: its number of bytes
MAX_TEXT = 2**20  # bytes of JSON in one answer
MAX_NUMBERS = 64 * 2**20  # bytes of tensors in one answer
DTYPES = {
    name: getattr(torch, name)
    for name in "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 "
    "complex128".split()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Malformed(ValueError):
    """An answer that no honest worker sends."""


class Closed(ConnectionError):
    """The other side ended before its message did."""


def _encode(value: Any, numbers: list[bytes]) -> Any:
    """The value as JSON; the bytes of its tensors are put at the end of `numbers`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(item, numbers) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, numbers) for item in value]}
    if isinstance(value, dict):
        pairs = [[_encode(key, numbers), _encode(item, numbers)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"array": _encode_tensor(torch.from_numpy(value), numbers)}
    if isinstance(value, Tensor):
        return {"tensor": _encode_tensor(value, numbers)}
    raise TypeError(
        f"a value of type {type(value).__name__} cannot be checked: give a tensor, a number, "
        "a text, or a list, tuple or dict of them"
    )


def _encode_tensor(tensor: Tensor, numbers: list[bytes]) -> list:
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.dtype not in NAMES:
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        raise TypeError(f"an ordinary dense tensor is expected, not one with {kind}")
    size = tensor.numel() * tensor.element_size()
    if sum(map(len, numbers)) + size > MAX_NUMBERS:  # before memory is taken: it may be expanded
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is too large to be checked")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().reshape(-1).contiguous()
    numbers.append(flat.view(torch.uint8).numpy().tobytes())
    return [NAMES[tensor.dtype], list(tensor.shape)]


class _Numbers:
    """The bytes of an answer's tensors, taken one tensor at a time."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, dtype: str, shape: list[int]) -> Tensor:
        """The next tensor; it shares no memory with the message."""
        if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > 16:
            raise Malformed(f"{shape} is no shape")
        size = prod(shape) * DTYPES[dtype].itemsize
        part = self.data[self.position : self.position + size]
        if len(part) != size:
            raise Malformed("a tensor is larger than the numbers that came with it")
        self.position += size
        raw = torch.frombuffer(bytearray(part), dtype=torch.uint8) if size else torch.empty(0)
        # A truth value has one of two bytes; others would confuse whoever reads it.
        whole = (raw != 0) if dtype == "bool" else raw.to(torch.uint8).view(DTYPES[dtype])
        return whole.reshape(shape)


def _decode(node: Any, numbers: _Numbers) -> Any:
    if isinstance(node, list):
        return [_decode(item, numbers) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tuple":
        return tuple(_decode(item, numbers) for item in content)
    if kind == "dict":
        return {_decode(key, numbers): _decode(item, numbers) for key, item in content}
    if kind not in ("tensor", "array"):
        raise Malformed(f"there is no {kind!r}")
    dtype, shape = content
    tensor = numbers.take(dtype, shape)
    return tensor.numpy() if kind == "array" else tensor


def pack(value: Any) -> tuple[bytes, bytes]:
    """A value as JSON and the bytes of its tensors.

    Raises:
        TypeError: Something in it is no plain value.
        ValueError: It is too large, or contains itself.
    """
    numbers: list[bytes] = []
    try:
        text = json.dumps(_encode(value, numbers)).encode()
    except RecursionError as error:
        raise ValueError("a value that contains itself cannot be checked") from error
    if len(text) > MAX_TEXT:
        raise ValueError(f"a value of {len(text):,} characters is too large to be checked")
    return text, b"".join(numbers)


def unpack(text: bytes, numbers: bytes) -> Any:
    """The value that `pack` took apart; tuples, lists and dicts of plain values and dense tensors.

    Raises:
        Malformed: No call of `pack` gives these bytes.
    """
    try:
        return _decode(json.loads(text), _Numbers(numbers))
    except (ValueError, TypeError, KeyError, RecursionError, RuntimeError, OverflowError) as error:
        raise Malformed(f"an answer that cannot be read: {error}") from error


class Channel:
    """One end of a socket; with a deadline (of `time.monotonic`) nothing takes longer than that.

    Every method raises Closed if the other side is gone and TimeoutError after the deadline.
    """

    def __init__(self, end: socket.socket, deadline: float | None = None):
        self.end, self.deadline = end, deadline

    def ask(self, request: Any) -> None:
        """Send a request: for the judge only."""
        self._send(pickle.dumps(request))

    def request(self) -> Any:
        """Wait for a request: for a worker only, since it unpickles."""
        return pickle.loads(self._receive(limit=None))

    def reply(self, answer: Any) -> None:
        """Send an answer: for a worker. Raises what `pack` raises before anything is sent."""
        for part in pack(answer):
            self._send(part)

    def answer(self) -> Any:
        """Wait for an answer: for the judge. Raises Malformed as `unpack` does."""
        return unpack(self._receive(MAX_TEXT), self._receive(MAX_NUMBERS))

    def _wait_no_longer(self) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the time is up")
            self.end.settimeout(left)

    def _send(self, part: bytes) -> None:
        self._wait_no_longer()
        try:
            self.end.sendall(LENGTH.pack(len(part)) + part)
        except ConnectionError as error:
            raise Closed("the other side ended") from error

    def _receive(self, limit: int | None) -> bytes:
        (size,) = LENGTH.unpack(self._read(LENGTH.size))
        if limit is not None and size > limit:
            raise Malformed(f"a message of {size:,} bytes is too large")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes, however slowly they trickle in."""
        data = bytearray()
        while len(data) < size:
            self._wait_no_longer()
            try:
                part = self.end.recv(min(size - len(data), 2**20))
            except ConnectionError as error:
                raise Closed("the other side ended") from error
            if not part:
                raise Closed("the other side ended")
            data += part
        return bytes(data)
