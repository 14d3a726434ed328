"""What a backbone can do for a method, and what a method needs: three steps, each of which includes those before it.

* ``features``: encode images and texts. Every image-text model does.
* ``styles``: also the mean and deviation of the image tower's layers, and the text tower run on given embeddings
  (learned context). CLIP's ResNets do.
* ``tokens``: also the image tower run on given tokens. CLIP's vision transformers do.

A method declares ``needs``, a backbone ``offers``; a plan compares the two before anything runs. This module imports
neither torch nor transformers.
"""

from typing import Literal

Capability = Literal["features", "styles", "tokens"]

#: Least first.
CAPABILITIES: tuple[Capability, ...] = ("features", "styles", "tokens")

_MEANING = {
    "features": "image and text features",
    "styles": "the image tower's layer statistics and learned text context",
    "tokens": "an image tower that runs on given tokens (a CLIP with a vision transformer)",
}


def covers(offers: Capability, needs: Capability) -> bool:
    """Whether a backbone that offers the one can serve a method that needs the other."""
    return CAPABILITIES.index(offers) >= CAPABILITIES.index(needs)


def shortfall(method: str, needs: Capability, backbone: str, offers: Capability) -> str:
    """One line: why a method cannot run on a backbone, and what to do; "" if it can."""
    if covers(offers, needs):
        return ""
    return (
        f"{method} needs {needs}, {_MEANING[needs]}; backbone {backbone} offers {offers}: choose another --backbone, or"
        f" leave {method} out"
    )
