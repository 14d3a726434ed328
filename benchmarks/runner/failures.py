"""Errors as one line for records and consoles, and what to do when memory runs out."""

from __future__ import annotations

import gc
import traceback

import torch


def describe(error: BaseException) -> str:
    """One line: the kind of error and its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def explain(error: BaseException) -> str:
    """One line: the error, and the fix where the error itself does not name it."""
    return f"{describe(error)}; {OUT_OF_MEMORY}" if out_of_memory(error) else describe(error)


#: The fix for a process that needs more memory than there is.
OUT_OF_MEMORY = "give it less to hold: fewer --jobs, a smaller batch (--set batch_size=N), or --precision bf16"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or a GPU, ran out; torch's CPU allocator has no error class of its own."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def release_memory(error: BaseException) -> None:
    """After a failed allocation: free what the error's frames hold, so that the next group has memory."""
    if out_of_memory(error):
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
