"""What is fuzzed, and how often one surface is tried for each time that another is."""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from . import (
    surface_adaptive,
    surface_caches,
    surface_conversion,
    surface_generate,
    surface_pipelines,
    surface_processor,
)
from .outcomes import Outcome


class Surface(NamedTuple):
    run_case: Callable[[Random, dict], Iterator[Outcome]]
    share: int


SURFACES = {
    "processor": Surface(surface_processor.run_case, 40),
    "generate": Surface(surface_generate.run_case, 35),
    "adaptive": Surface(surface_adaptive.run_case, 15),
    "caches": Surface(surface_caches.run_case, 30),
    "pipelines": Surface(surface_pipelines.run_case, 8),
    "conversion": Surface(surface_conversion.run_case, 2),
}
