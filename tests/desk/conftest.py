import numpy as np
import pytest

from napo.engine import models
from napo.profiles import Quantisation
from tools.desk_bases import bases


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shipped():
    """(model, processor) of base 0 in full precision."""
    return models.load(str(bases.folder_of(0)), Quantisation(four_bit=False))
