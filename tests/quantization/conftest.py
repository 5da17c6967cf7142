"""What the tests of this room share."""

from collections.abc import Iterator

import pytest

from unspeckle.kernels import quantize


@pytest.fixture(params=["kernel", "PyTorch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the kernels, and without them."""
    if request.param == "PyTorch":
        monkeypatch.setattr(quantize, "_load_kernel", lambda: None)
    elif quantize._load_kernel() is None:
        pytest.skip("needs a C++ compiler and a processor with bfloat16")
    yield
