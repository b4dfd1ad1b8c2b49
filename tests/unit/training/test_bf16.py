from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from streamdet.training import bf16
from streamdet.training.bf16 import bf16_pays

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_again() -> Iterator[None]:
    bf16_pays.cache_clear()
    yield
    bf16_pays.cache_clear()


@pytest.fixture
def _is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)


@pytest.mark.usefixtures("_is_native")
@pytest.mark.parametrize(("fp32", "half", "pays"), [(2.0, 1.0, True), (2.0, 1.9, False), (2.0, 4.0, False)])
def test_instructions_for_bf16_do_not_suffice(
    monkeypatch: pytest.MonkeyPatch, fp32: float, half: float, *, pays: bool
) -> None:
    monkeypatch.setattr(bf16, "_fastest_seconds", lambda: (fp32, half))
    assert bf16_pays(CPU) is pays


def test_what_is_emulated_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(bf16, "_fastest_seconds", lambda: pytest.fail("was tried"))
    assert bf16_pays(CPU) is False


@pytest.mark.usefixtures("_is_native")
def test_it_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[tuple[float, float]] = []
    really = bf16._fastest_seconds

    def measure() -> tuple[float, float]:
        times.append(really())
        return times[-1]

    monkeypatch.setattr(bf16, "_fastest_seconds", measure)
    assert bf16_pays(CPU) == bf16_pays(CPU)
    ((fp32, half),) = times
    assert 0 < fp32 < 10
    assert 0 < half < 10
