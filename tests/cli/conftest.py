"""What the tests of the command line share."""

import pytest

from tiny_models import save_random_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model file with random weights, 16 pixels, 4 steps."""
    return str(save_random_model(tmp_path_factory.mktemp("model")))
