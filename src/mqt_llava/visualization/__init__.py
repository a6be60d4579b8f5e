"""
Visualization: where in an image an answer comes from, what each query looks at, and what more visual tokens change.

Nothing but figures needs matplotlib, nothing but integrated gradients captum: `pip install "mqt_llava[visual]"`.
"""

from .changes import largest_changes, probabilities_by_num_visual_tokens
from .figures import draw_changes, draw_coverage, draw_heatmaps, draw_queries
from .heatmaps import METHODS, answer_heatmap, answer_score, attribute, visual_token_heatmap
from .image_answer import ImageAnswer
from .pixels import heat_over_image, seen_box
from .queries import coverage, query_maps


__all__ = [
    "METHODS",
    "ImageAnswer",
    "answer_heatmap",
    "answer_score",
    "attribute",
    "coverage",
    "draw_changes",
    "draw_coverage",
    "draw_heatmaps",
    "draw_queries",
    "heat_over_image",
    "largest_changes",
    "probabilities_by_num_visual_tokens",
    "query_maps",
    "seen_box",
    "visual_token_heatmap",
]
