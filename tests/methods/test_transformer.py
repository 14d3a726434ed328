"""The activation of CLIP's blocks in fewer arrays: the same bits as the stock module."""

from collections.abc import Iterator

import pytest
import torch
from transformers.activations import QuickGELUActivation

from methods.parts import transformer
from methods.parts.transformer import quick_gelu


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [1, 7, transformer._PIECE - 1, transformer._PIECE, 2 * transformer._PIECE + 13])
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_stock_module(
    monkeypatch: pytest.MonkeyPatch, size: int, large: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(transformer, "_LARGE", 1 if large else 1 << 40)
    start = 4 * torch.randn(size, generator=torch.Generator().manual_seed(size))
    arguments = [start.to(dtype).requires_grad_(True) for _ in range(2)]
    weights = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, stock = quick_gelu(arguments[0]), QuickGELUActivation()(arguments[1])
    assert torch.equal(ours, stock)
    for result in (ours, stock):
        (result * weights).sum().backward()
    assert arguments[0].grad is not None
    assert arguments[1].grad is not None
    assert torch.equal(arguments[0].grad, arguments[1].grad)


def test_arguments_of_other_layouts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_LARGE", 1)
    rows = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    ours, stock = (rows.clone().requires_grad_(True) for _ in range(2))
    quick_gelu(ours.transpose(0, 2)).sum().backward()
    QuickGELUActivation()(stock.transpose(0, 2)).sum().backward()
    assert ours.grad is not None
    assert stock.grad is not None
    assert torch.equal(ours.grad, stock.grad)


def test_without_gradients_the_result_takes_the_arguments_place() -> None:
    start = torch.randn(3, transformer._PIECE, generator=torch.Generator().manual_seed(0))
    stock, argument = QuickGELUActivation()(start), start.clone()
    with torch.no_grad():
        ours = quick_gelu(argument)
    assert torch.equal(ours, stock)
    assert ours.data_ptr() == argument.data_ptr()
