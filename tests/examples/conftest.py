"""A dataset for the scripts about mosaics."""

import gzip

import numpy as np
import pytest


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Four files like Fashion-MNIST's, with noise for photos."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (100, 28, 28), dtype=np.uint8)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        labels = np.arange(100, dtype=np.uint8) % 10
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    return folder
