"""What every command does alike: read names as UTF-8 whatever the locale, and end quietly when its reader is gone."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's ``main(argv=None, ...)``.

    * Started by a person (no ``argv``) under a locale that is not UTF-8, Python is started anew in its UTF-8 mode:
      file names, files and arguments are then read as the bytes they are.
    * A terminal that cannot show a letter gets its code instead of an error.
    * A reader that is gone (``| head``) ends the command with exit code 1 and no traceback.
    """

    @functools.wraps(main)
    def run(argv: Any = None, *more: Any, **named: Any) -> int:
        if argv is None and not is_utf8():
            start_anew()
        with _shown():
            try:
                try:
                    return main(argv, *more, **named)
                finally:
                    sys.stdout.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1

    return run


@contextmanager
def _shown() -> Iterator[None]:
    """Letters that a stream cannot show become their codes; the streams are put back at the end."""
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.encoding or "").lower().replace("-", "") != "utf8":
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def is_utf8() -> bool:
    """Whether file names and files without a stated encoding are UTF-8 here."""
    names = sys.getfilesystemencoding().lower().replace("-", "")
    return bool(sys.flags.utf8_mode) or names == "utf8"


def start_anew() -> None:
    """Replace this process by the same command in Python's UTF-8 mode."""
    os.environ["PYTHONUTF8"] = "1"
    arguments = [one for one in sys.orig_argv[1:] if one != "utf8=0"]
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *arguments])
