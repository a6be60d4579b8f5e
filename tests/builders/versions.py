"""Tests that the oldest supported versions cannot pass."""

import pytest
import torch
from packaging.version import Version


needs_tracing = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"),  # the versions between have not been tried
    reason="torch 2.7 and 2.8 cannot trace transformers' configurations, nor export a module with optional inputs",
)
