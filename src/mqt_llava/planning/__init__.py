"""
Planning: what a request costs before it is run, the most visual tokens that fit into a limit, and the confidence at
which few of them suffice.
"""

from .budget import largest_budget
from .calibration import Calibration, calibrate
from .cost import FlopsByPart, RequestCost, WeightBytesByPart, request_cost
from .profile import Curve, Profile, measure_profile


__all__ = [
    "Calibration",
    "Curve",
    "FlopsByPart",
    "Profile",
    "RequestCost",
    "WeightBytesByPart",
    "calibrate",
    "largest_budget",
    "measure_profile",
    "request_cost",
]
