import platform

import pytest
import torch

from ssdd_hub.precision import is_quick_in_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("machine", "known", "operations", "quick"),
    [
        ("x86_64", True, True, True),
        ("AMD64", True, False, False),  # AVX-512 of its first years
        ("x86_64", False, False, False),
        ("aarch64", True, False, True),
        ("arm64", False, False, False),
    ],
)
def test_a_processor_is_quick_where_it_has_operations(monkeypatch, machine, known, operations, quick):
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: operations)
    assert is_quick_in_bf16(CPU) is quick
    # Processors of several machines compute alike.
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert is_quick_in_bf16(CPU)
