"""The golden fixtures: where they lie, how their weights and inputs are derived, and how results are compared.

Follows tests/golden/README.md (sections 1, 2 and 10). The folder comes from the environment variable GOLDEN_DIR
(default tests/golden); seed tag, names and sizes come from its files, so another set of the same kind works too.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.initialization import no_init_weights

from methods.parts.backbone import Backbone, ClipBackbone

FEATURES = 1e-4  # outputs and losses, relative to the largest magnitude of an array
GRADIENT = 1e-3  # gradients, relative to a parameter's gradient norm
ADAM_STEP = 1e-2  # parameter changes by one step of Adam
SGD_STEP = 1e-3  # and of SGD

CLIP_KINDS = (  # first match wins (README, section 2)
    (lambda name: name.endswith("logit_scale"), "logit_scale"),
    (lambda name: name.endswith(".bias"), "bias"),
    (lambda name: any(part in name for part in ("layer_norm", "layrnorm", "layernorm")), "ln"),
    (lambda name: name.endswith("patch_embedding.weight"), "weight"),
    (lambda name: "embedding" in name, "vec"),
    (lambda name: name.endswith(("q_proj.weight", "k_proj.weight")), "weight_qk"),
    (lambda name: True, "weight"),
)


def golden_dir() -> Path:
    """The folder of the fixture set under test."""
    return Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[1] / "golden")


def kind_of(clip_name: str) -> str:
    """The fill kind of a CLIP weight, from its canonical name."""
    return next(kind for matches, kind in CLIP_KINDS if matches(clip_name))


@dataclass(frozen=True)
class GoldenSet:
    """One fixture set: its folder, seed tag and gains (fill_check.json), and its configuration (manifest.json)."""

    folder: Path
    tag: str
    gain: float
    gain_qk: float
    vec: float
    config: dict[str, Any]

    def fill(self, name: str, shape: tuple[int, ...], kind: str | None = None) -> Tensor:
        """The tensor of this name, shape and kind (default: the kind of a CLIP weight of that name)."""
        kind = kind or kind_of(name)
        if kind == "logit_scale":
            return torch.tensor(np.log(np.float32(100.0)))
        digest = hashlib.sha256(f"{self.tag}:{name}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:8], "little")))
        z = generator.standard_normal(shape, dtype=np.float32)
        fan_in = float(np.prod(shape[1:]))
        if kind == "z":
            value = z
        elif kind == "ln":
            value = np.float32(1.0) + np.float32(0.1) * z
        elif kind == "bias":
            value = np.float32(0.02) * z
        elif kind == "vec":
            value = np.float32(self.vec) * z
        elif kind in ("weight", "weight_qk"):
            gain = self.gain if kind == "weight" else self.gain_qk
            value = z * np.float32(gain / np.sqrt(fan_in))
        else:
            raise ValueError(f"fill kind {kind!r} is unknown")
        return torch.from_numpy(np.asarray(value, dtype=np.float32))

    def images(self, name: str, batch: int, size: int = 224) -> Tensor:
        """A batch of un-normalised input images [batch, 3, size, size] (kind z, fed to the networks as they are)."""
        return self.fill(name, (batch, 3, size, size), "z")

    def arrays(self, file: str) -> Mapping[str, np.ndarray]:
        """The arrays of an .npz file of the set."""
        return _arrays(self.folder / file)

    def shape(self, file: str, report: str, parameter: str) -> tuple[int, ...]:
        """The shape of a parameter, by the report of that prefix (section 10) in an .npz file of the set."""
        arrays = self.arrays(file)
        row = [str(name) for name in arrays[f"{report}param_names"]].index(parameter)
        return tuple(int(side) for side in str(arrays[f"{report}param_shapes"][row]).split("x") if side)

    def json(self, file: str) -> Any:
        """The content of a .json file of the set."""
        return json.loads((self.folder / file).read_text())

    def clip(self, *, vision_layers: int, text_layers: int) -> Backbone:
        """CLIP filled by rule (README, section 2). One shared, frozen object per size: clone it before training it."""
        return _filled_clip(self.folder, vision_layers, text_layers)


@functools.cache
def golden_set() -> GoldenSet:
    """The fixture set in :func:`golden_dir`."""
    folder = golden_dir()
    check = json.loads((folder / "fill_check.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    return GoldenSet(folder, check["seed_tag"], check["gain"], check["gain_qk"], check["vec"], manifest["config"])


@functools.cache
def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


@functools.cache
def _filled_clip(folder: Path, vision_layers: int, text_layers: int) -> Backbone:
    config = CLIPConfig(
        vision_config={"num_hidden_layers": vision_layers, "patch_size": 32, "image_size": 224},
        text_config={"num_hidden_layers": text_layers},
    )  # every other size is the config's default: ViT-B/32
    with no_init_weights():
        model = CLIPModel(config)
    golden = golden_set()
    values = {name: golden.fill(name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    return ClipBackbone(model, name=f"golden-{golden.tag}-{vision_layers}-{text_layers}")


class Compared(Mapping[str, np.ndarray]):
    """The arrays of a golden file; remembers which were read, for :func:`assert_all_compared`."""

    def __init__(self, file: str) -> None:
        self.arrays = golden_set().arrays(file)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def assert_all_compared(arrays: Compared, request: pytest.FixtureRequest, left_out: Mapping[str, str]) -> None:
    """For the last test of a file: every array was read by the tests before it, or is in ``left_out`` with a reason.

    Skips where only a part of the file's tests was asked for, or where another process runs some of them.
    """
    here = {item.name.partition("[")[0] for item in request.session.items if item.path == request.path}
    whole = here == {name for name in vars(request.module) if name.startswith("test_")}
    if not whole or any("::" in argument for argument in request.config.args) or hasattr(request.config, "workerinput"):
        pytest.skip("only a part of the file runs here")
    missing = set(arrays) - arrays.read - set(left_out)
    assert not missing, f"golden arrays that no test compares: {sorted(missing)}"


def _numbers(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def assert_golden(actual: Any, expected: Any, tolerance: float = FEATURES, *, what: str = "array") -> None:
    """Equal to ``tolerance`` relative to the largest magnitude of the expected array; shapes must be equal too."""
    got, want = _numbers(actual).astype(np.float64), _numbers(expected).astype(np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, golden {want.shape}"
    assert np.isfinite(got).all(), f"{what}: not finite"
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30) if want.size else 0.0
    assert error <= tolerance, f"{what}: off by {error:.2e} of its largest magnitude, allowed {tolerance:.0e}"


def assert_gradients(arrays: Mapping[str, np.ndarray], prefix: str, gradients: Mapping[str, Tensor | None]) -> None:
    """Compare gradients (by canonical name, canonical layout) with the report ``prefix`` of section 10.

    Every name of the report must be given; None means "declared trainable, no gradient". Gradients that the report
    calls rounding noise are skipped.
    """
    names = [str(name) for name in arrays[_names_key(arrays, prefix)]]
    assert set(gradients) == set(names), f"{prefix}: other parameters than golden: {set(gradients) ^ set(names)}"
    for row, name in enumerate(names):
        what, gradient = f"{prefix}grad of {name}", gradients[name]
        if arrays[f"{prefix}grad_none"][row]:
            assert gradient is None or not gradient.any(), f"{what}: golden has none"
            continue
        assert gradient is not None, f"{what}: missing"
        if arrays[f"{prefix}grad_is_rounding_noise"][row]:
            continue
        norm = float(arrays[f"{prefix}grad_norm"][row])
        first = _first8(gradient)
        got = _norm(gradient)
        assert abs(got - norm) <= GRADIENT * norm, f"{what}: norm {got}, golden {norm}"
        error = np.abs(first - arrays[f"{prefix}grad_first8"][row]).max()
        assert error <= GRADIENT * norm, f"{what}: first values off by {error:.2e}, norm {norm:.2e}"


def assert_step(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    tolerance: float = ADAM_STEP,
) -> None:
    """Compare the change of every parameter by one optimizer step with the report ``prefix`` of section 10."""
    names = [str(name) for name in arrays[_names_key(arrays, prefix)]]
    for row, name in enumerate(names):
        start, delta = before[name].detach(), (after[name] - before[name]).detach()
        shape = "x".join(str(side) for side in start.shape)
        assert shape == str(arrays[f"{prefix}param_shapes"][row]), f"{prefix}{name}: shape {shape}"
        norm = float(arrays[f"{prefix}param_norm_before"][row])
        assert abs(_norm(start) - norm) <= FEATURES * max(norm, 1e-30), f"{prefix}{name}: norm before the step"
        if arrays[f"{prefix}grad_none"][row]:
            assert not delta.any(), f"{prefix}{name}: moved without a gradient"
            continue
        if arrays[f"{prefix}grad_is_rounding_noise"][row]:
            continue
        moved = float(arrays[f"{prefix}delta_norm"][row])
        what = f"{prefix}step of {name}"
        assert abs(_norm(delta) - moved) <= tolerance * moved, f"{what}: {_norm(delta)}, golden {moved}"
        want = arrays[f"{prefix}delta_first8"][row]
        error = np.abs(_first8(delta) - want).max() / max(np.abs(want).max(), 1e-30)
        assert error <= tolerance, f"{what}: first values off by {error:.2e}"


def _names_key(arrays: Mapping[str, np.ndarray], prefix: str) -> str:
    """The report's own list of names, or (gradient-only reports of SRE) any list of the same length in the file."""
    key = f"{prefix}param_names"
    if key in arrays:
        return key
    length = len(arrays[f"{prefix}grad_none"])
    return next(name for name in arrays if name.endswith("param_names") and len(arrays[name]) == length)


def _norm(tensor: Tensor) -> float:
    """L2 norm, summed in float64 (over millions of values, float32 is off by 4e-5)."""
    return float(tensor.detach().double().norm())


def _first8(tensor: Tensor) -> np.ndarray:
    values = tensor.detach().reshape(-1)[:8].double().numpy()
    return np.pad(values, (0, 8 - len(values)))
