"""What every test of training needs."""

import pytest


@pytest.fixture(autouse=True)
def _training_environment(training_environment: None) -> None:
    """Every test has it."""
