import numpy as np
import pytest

from napo import models
from napo.profiles import Quantisation
from napo.world import bases


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shipped():
    """(model, processor) of base 0 in full precision."""
    return models.load(str(bases.load_base(0)), Quantisation(four_bit=False))
