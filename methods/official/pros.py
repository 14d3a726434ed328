"""What the official code of ProS does differently from the paper; methods/cards/pros.toml has all differences."""

from collections.abc import Sequence
from typing import Any

#: Changes to the paper's settings: every switch as in the official code.
SETTINGS: dict[str, Any] = {
    "read_out": "first_prompt",
    "simulator_output": "index_1",
    "train_statistics": "imagenet",
    "test_statistics": "clip",
    "sampler": "released",
}


def first_output(kinds: Sequence[str], prompt_length: int) -> int:
    """The first simulator token that becomes a prompt (the paper: 0, the first template).

    The official code reads from index 1, which is the end of the templates where there is only one kind of them: the
    prompt is then the output at prompt unit 0, or at the first patch.
    """
    return prompt_length if len(kinds) == 1 else 0
