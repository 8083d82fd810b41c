import pytest
import torch

from ssdd_hub.data.device import RESIDENT, copy_async, gather, keep_on_device


def test_on_the_cpu_nothing_is_moved():
    rows = torch.arange(12).view(4, 3)
    assert keep_on_device(rows, "cpu") is rows and copy_async(rows, "cpu") is rows
    assert torch.equal(gather(rows, torch.tensor([2, 0, 2]), "cpu"), rows[[2, 0, 2]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_what_is_small_stays_there_and_rows_are_the_same(monkeypatch):
    rows = torch.arange(12).view(4, 3)
    assert RESIDENT > rows.nbytes and keep_on_device(rows, "cuda").is_cuda
    monkeypatch.setattr("ssdd_hub.data.device.RESIDENT", rows.nbytes - 1)
    assert not keep_on_device(rows, "cuda").is_cuda
    for place in (rows, rows.cuda()):
        found = gather(place, torch.tensor([2, 0, 2]), "cuda")
        assert found.is_cuda and torch.equal(found.cpu(), rows[[2, 0, 2]])
