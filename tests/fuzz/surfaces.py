"""What is fuzzed, and how often one surface is tried for each time that another is."""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from . import surface_adaptive, surface_caches, surface_generate
from .outcomes import Outcome


class Surface(NamedTuple):
    run_case: Callable[[Random, dict], Iterator[Outcome]]
    share: int


SURFACES = {
    "generate": Surface(surface_generate.run_case, 25),
    "adaptive": Surface(surface_adaptive.run_case, 12),
    "caches": Surface(surface_caches.run_case, 12),
}
