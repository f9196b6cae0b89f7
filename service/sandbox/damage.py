"""Carrying out faults on the way from the vendor's answer to the caller."""

import asyncio
import zlib
from functools import lru_cache
from typing import Final, assert_never

import orjson

from service.sandbox.answers import Answer
from service.sandbox.faults import Fault
from service.sandbox.line import Line

__all__ = ["deliver", "deliver_damaged", "placeholder", "told_status"]

BLOCK: Final = b" " * 2**20


def placeholder(status: int) -> Answer:
    """What stands for the answer of a call that never took effect."""
    return Answer(status, orjson.dumps({"message": "a fault of the sandbox: this call had no effect"}))


def told_status(answer: Answer, fault: Fault | None = None) -> int | None:
    """The status that the caller will see, None when none reaches it."""
    if fault is None or fault.kind in {"delay", "drip", "malformed", "html", "huge", "gzip_bomb"}:
        return None if answer.lost else answer.status
    match fault.kind:
        case "status":
            return int(fault.amount)
        case "truncate":
            return answer.status if b"\r\n" in _kept(fault, answer) else None
        case _:
            return None


async def deliver(answer: Answer, line: Line) -> None:
    """Send an answer, or lose it."""
    if answer.lost:
        await line.cut()
    else:
        await line.send(answer)


async def deliver_damaged(fault: Fault, answer: Answer, line: Line) -> None:
    """Send what the fault leaves of an answer."""
    match fault.kind:
        case "delay":
            await line.pause(fault.amount)
            await deliver(answer, line)
        case "hang":
            await line.gone()
        case "reset":
            await line.reset()
        case "truncate":
            await line.cut(_kept(fault, answer))
        case "drip":
            await _drip(fault.amount, answer, line)
        case "status" | "malformed" | "html" | "huge" | "gzip_bomb":
            await line.send(await _replacement(fault, answer.status))
        case _:
            assert_never(fault.kind)


def _kept(fault: Fault, answer: Answer) -> bytes:
    raw = answer.raw()
    return raw[: len(raw) // 2 if fault.value is None else int(fault.value)]


async def _drip(seconds_between: float, answer: Answer, line: Line) -> None:
    await line.send_head(answer.status, answer.headers)
    for position in range(len(answer.body)):
        await line.send_part(answer.body[position : position + 1])
        if not await line.pause(seconds_between):
            return
    await line.send_part(b"", last=True)


async def _replacement(fault: Fault, status: int) -> Answer:
    """The body of a fault under the status of the answer that it replaces."""
    match fault.kind:
        case "status":
            return Answer(int(fault.amount), orjson.dumps({"message": "a fault of the sandbox"}))
        case "malformed":
            return Answer(status, b'{"id": "unfinished')
        case "html":
            return Answer(status, b"<!doctype html><title>Sorry</title><h1>Back soon</h1>", b"text/html; charset=utf-8")
        case "huge":
            return Answer(status, await asyncio.to_thread(_huge_json, int(fault.amount)))
        case _:
            bomb = await asyncio.to_thread(_gzip_bomb, int(fault.amount))
            return Answer(status, bomb, extra_headers=((b"content-encoding", b"gzip"),))


def _huge_json(size: int) -> bytes:
    """Valid JSON of about this size."""
    return b'{"padding":"' + b"x" * size + b'"}'


@lru_cache(maxsize=4)
def _gzip_bomb(size: int) -> bytes:
    """A small gzip stream that opens into this many bytes of valid JSON."""
    packer = zlib.compressobj(9, wbits=31)
    blanks = max(size - len(b"{}"), 0)
    parts = [packer.compress(BLOCK[: blanks - done]) for done in range(0, blanks, len(BLOCK))]
    return b"".join([*parts, packer.compress(b"{}"), packer.flush()])
