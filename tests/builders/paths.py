"""Where things lie in the repository."""

from pathlib import Path


REPOSITORY = Path(__file__).parents[2]
FIXTURES = REPOSITORY / "tests" / "fixtures"
CHECKPOINT = REPOSITORY / "model_cards" / "mqt-llava-tiny"  # the embedded one, whose M is 16
PICTURES = REPOSITORY / "examples" / "images"
GOLDEN_NAMES = ("mqt_llava_original_tiny", "mqt_llava_original_tiny_legacy_false")
QUECC_GOLDEN_NAME = "quecc_original_tiny"
