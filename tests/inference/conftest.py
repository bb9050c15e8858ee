import pytest
from tiny import tiny_model


@pytest.fixture(scope="session")
def splice():
    return tiny_model("splice")
