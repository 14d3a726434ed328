"""What the commands share: one-line errors of options, UTF-8 whatever the locale, consoles, progress in lines.

No command imports another; what two of them need is here or in a package.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import io
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's ``main(argv=None, ...)``.

    * Started from a shell (no ``argv``) under a locale that is not UTF-8, Python is started again in its UTF-8 mode:
      file names, files and arguments are then read as the bytes they are.
    * A character that the terminal cannot show is printed as its code instead of raising an error.
    * A closed pipe (``| head``) ends the command with exit code 1 and no traceback.
    """

    @functools.wraps(main)
    def run(argv: Any = None, *more: Any, **named: Any) -> int:
        if argv is None and not is_utf8():
            restart_in_utf8()
        with _printable_streams():
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
def _printable_streams() -> Iterator[None]:
    """Characters that a stream cannot show become their codes; the streams are restored at the end."""
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


def restart_in_utf8() -> None:
    """Replace this process by the same command in Python's UTF-8 mode."""
    os.environ["PYTHONUTF8"] = "1"
    arguments = [argument for argument in sys.orig_argv[1:] if argument != "utf8=0"]
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *arguments])


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; an unknown option is answered with the nearest one."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        for kind, said in (("int", "a whole number"), ("float", "a number")):
            message = re.sub(rf"invalid {kind} value: (.*)", rf"{said} is needed, not \1", message)
        self.exit(2, f"{self.prog}: {message}{self._meant(message)} (--help lists the options)\n")

    def _meant(self, message: str) -> str:
        """``; did you mean --search?`` for the unknown options that a message names, of those of this parser."""
        if not message.startswith("unrecognized arguments: "):
            return ""
        parsers: list[argparse.ArgumentParser] = [self]
        for action in self._actions:
            parsers += action.choices.values() if isinstance(action, argparse._SubParsersAction) else []
        known = sorted({option for parser in parsers for option in parser._option_string_actions})
        wrong = [word.partition("=")[0] for word in message.split()[2:] if word.startswith("--")]
        near = [match for word in wrong for match in difflib.get_close_matches(word, known, n=1)]
        return f"; did you mean {' and '.join(dict.fromkeys(near))}?" if near else ""


def _filled(text: str, fix: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"is empty{fix}")
    return text


def given(text: str) -> str:
    """An argument that names something, as ``type`` of an option; an empty one is refused."""
    return _filled(text, "; name one, or leave the option out")


def given_folder(text: str) -> str:
    """:func:`given` for arguments that no command leaves out."""
    return _filled(text, "; name a folder")


def named_path(text: str) -> Path:
    """An option's file or folder; an empty one is refused (it would be the current folder)."""
    return Path(_filled(text, "; name one, or leave the option out"))


def consoles() -> tuple[Console, Console]:
    """Standard output and error; tables keep their width where there is no terminal to fit."""
    from rich.console import Console

    out, err = Console(), Console(stderr=True)
    return (out if out.is_terminal else Console(width=160)), err


def printable(text: str) -> str:
    r"""The text in one line: line breaks, control characters and bytes that are no UTF-8 as their codes (``\n``)."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which need not be there yet, in a few words; "" if it can."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            is_folder = stat.S_ISDIR(place.stat().st_mode)
        except OSError:  # not there, or the folder around it cannot be searched
            continue
        if not is_folder:
            return f"{place} is a file, not a folder"
        return "" if os.access(place, os.W_OK | os.X_OK) else f"no permission to write in {place}"
    return ""


#: Our errors whose message alone says what is wrong and how to fix it.
_PLAIN = re.compile(r"^(?:Dataset|Image|Backbone|Checkpoint|Settings|Texts|TunedFile|NotApplicable)Error: ")


def plain(reason: str) -> str:
    """A record's reason of a failure as it is printed: without the name of our own error classes."""
    return _PLAIN.sub("", reason)


def counted(count: int, what: str) -> str:
    """``1 image``, ``2 images``, ``2 searches``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith(('s', 'ch')) else 's'}"


def file_size(count: int) -> str:
    """``3.2 kB``, ``1.25 MB``: a number of bytes."""
    return f"{count / 1e6:.2f} MB" if count >= 999_950 else f"{count / 1e3:.1f} kB"


#: Seconds between two lines where there is no terminal for a bar (log files of batch jobs).
EVERY = 60.0


class Lines:
    """A line on standard error every :data:`EVERY` seconds: how many of ``total`` are done, and the time left."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done = total, what, 0
        self._started = self._printed = time.monotonic()

    def advance(self, count: int) -> None:
        """Count what was done; print a line if one is due."""
        self._done += count
        now = time.monotonic()
        if now - self._printed < EVERY or not self._done:
            return
        self._printed, gone = now, now - self._started
        rest = gone / self._done * max(0, self._total - self._done)
        left = f", about {duration(rest)} left" if rest else ""
        line = f"{self._done} of {self._total} {self._what} after {duration(gone)}{left}"
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
