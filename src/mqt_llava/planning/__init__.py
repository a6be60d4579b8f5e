"""
Planning: what a request costs before it is run, the most visual tokens that fit into a limit, the confidence at
which few of them suffice, and whether to spend a compute budget on parameters or on visual tokens.
"""

from .calibration import Calibration, calibrate
from .calibration_report import draw_report, report_calibration, save_report
from .cost import FlopsByPart, RequestCost, WeightBytesByPart, request_cost
from .limits import largest_num_visual_tokens
from .observations import Observation, read_observations
from .profile import Curve, Profile, measure_profile
from .scaling_fit import ScalingFit, fit_scaling_law
from .scaling_law import Optimum, ScalingLaw, request_flops


__all__ = [
    "Calibration",
    "Curve",
    "FlopsByPart",
    "Observation",
    "Optimum",
    "Profile",
    "RequestCost",
    "ScalingFit",
    "ScalingLaw",
    "WeightBytesByPart",
    "calibrate",
    "draw_report",
    "fit_scaling_law",
    "largest_num_visual_tokens",
    "measure_profile",
    "read_observations",
    "report_calibration",
    "request_cost",
    "request_flops",
    "save_report",
]
