"""Copies that do not wait for what the device is asked for after them."""

import pytest
import torch

from rg.distributed.host_copy import HostCopy

SLEEP = 2_000_000_000  # cycles: about a second


def test_on_a_cpu_the_numbers_are_there():
    values = torch.rand(2, 3)
    assert torch.equal(HostCopy(values).wait(), values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are those of a GPU")
def test_numbers_arrive_while_the_device_is_busy():
    values = torch.rand(4, 3, device="cuda") * 2
    expected = values.cpu()
    copy = HostCopy(values)
    torch.cuda._sleep(SLEEP)
    end = torch.cuda.current_stream().record_event()
    found = copy.wait()
    assert not end.query()
    assert found.device.type == "cpu"
    assert torch.equal(found, expected)
    end.synchronize()
