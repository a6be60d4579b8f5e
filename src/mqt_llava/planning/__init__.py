"""Planning: what a request costs before it is run, and the most visual tokens that fit into a limit."""

from .budget import largest_budget
from .cost import FlopsByPart, RequestCost, WeightBytesByPart, request_cost
from .profile import Curve, Profile, measure_profile


__all__ = [
    "Curve",
    "FlopsByPart",
    "Profile",
    "RequestCost",
    "WeightBytesByPart",
    "largest_budget",
    "measure_profile",
    "request_cost",
]
