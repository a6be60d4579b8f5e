"""Planning: what a request costs before it is run."""

from .cost import FlopsByPart, RequestCost, WeightBytesByPart, request_cost


__all__ = ["FlopsByPart", "RequestCost", "WeightBytesByPart", "request_cost"]
