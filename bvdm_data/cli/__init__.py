"""The command line: arguments in, one public call, text out."""

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bvdm_data.cli.clips import bench, export, fetch, preview, shards
from bvdm_data.cli.models import evaluate, fit, info, models
from bvdm_data.files import cut_words

GRACE_SECONDS = 1.5  # how long a command may clean up after Ctrl-C
LONGEST_MESSAGE = 2000  # characters that fit on a screen


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bvdm-data")
def cli() -> None:
    """Annotated live-cell video clips, synthesised while you train."""


for _command in (fit, info, models, preview, export, shards, evaluate, bench, fetch):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; errors of the user are one line, not a traceback."""
    with _stop_on_signals() as received:
        try:
            cli()
        except BaseException as error:
            if received:
                atexit._run_exitfuncs()
                _exit_now(received[0])
            user_errors = (ValueError, TypeError, OSError, IndexError, ImportError, MemoryError)
            if not isinstance(error, user_errors):
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if any(line.startswith("Original Traceback") for line in lines):  # of a loader's worker
                lines = [lines[-1].partition(": ")[2] or lines[-1]]
            message = cut_words(" ".join(lines), LONGEST_MESSAGE)
            click.echo(f"bvdm-data: {message}", err=True)
            sys.exit(1)


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """End workers and the command on Ctrl-C and SIGTERM; give the list of those that came."""
    received: list[int] = []
    process, is_main = os.getpid(), threading.current_thread() is threading.main_thread()

    def stop(number: int, _: object) -> None:
        if os.getpid() != process:  # a forked worker, which its parent ends after Ctrl-C
            return None if number == signal.SIGINT else os._exit(128 + number)
        received.append(number)
        if hasattr(signal, "SIGCHLD"):  # a loader complains about lost workers
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _end_workers()
        raise SystemExit(128 + number)

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if is_main and signal.getsignal(number) is not signal.SIG_IGN
    }
    if not before:
        yield received
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    other = signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=_watch_signals, args=(reader, [*before]), daemon=True).start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(other)
        writer.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_signals(reader: socket.socket, numbers: list[int]) -> None:
    """End the command where it takes too long, be it in a call of torch that no handler stops."""
    with reader:
        for byte in iter(lambda: reader.recv(1), b""):
            if byte[0] in numbers:
                time.sleep(GRACE_SECONDS)
                _exit_now(byte[0])


def _exit_now(number: int) -> None:
    """Say why, and end without the seconds in which Python would clear its memory."""
    _end_workers()
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    os.write(2, f"bvdm-data: stopped by {name}\n".encode())
    os._exit(128 + number)


def _end_workers() -> None:
    for child in multiprocessing.active_children():
        child.kill()
