"""What every published picture must be."""

import io

import numpy as np
from PIL import Image

from napo.study import plot_style


def check_picture(figure):
    """README width, not too high, something drawn, and nothing cut at the edges."""
    image = np.asarray(Image.open(io.BytesIO(plot_style.png(figure))).convert("RGB"))
    height, width, _ = image.shape
    assert width == 1200 and height <= 1500 and (image < 128).any()
    edge = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
    assert (edge == 255).all()
