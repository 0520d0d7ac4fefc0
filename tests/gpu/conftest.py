"""Every test here runs on a GPU (`make test-gpu`), and in a short form on the CPU, so that they are tested, too."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))  # composing, fake_graph

from cells import GPU


@pytest.fixture(params=[GPU, "cpu"])
def device(request):
    """The GPU; or the CPU, on which a test takes few steps, and a stand-in records the captured ones."""
    from fake_graph import fake_gpu

    if request.param == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False  # as PyTorch starts; these tests compare with float64
        torch.backends.cudnn.allow_tf32 = False
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        with fake_gpu():
            yield torch.device("cpu")
