"""
Runs stage 2 with a LLaVA around the model's own parts as its teacher, in as many processes as it is launched in:

    python tests/training/finetune_from_llava.py --distillation llava --lora_rank 4 ...
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from mqt_llava.training.assemble import load_model_and_processor
from tests.builders.scripts import load_script
from tests.builders.teachers import llava_around


def main(argv: list[str] | None = None):
    recipe = load_script("examples/train/finetune.py")
    teachers = []

    def load(*args, **kwargs):
        model, processor = load_model_and_processor(*args, **kwargs)
        teachers.append(llava_around(model))
        return model, processor

    recipe.load_model_and_processor, recipe.load_teacher = load, lambda args: teachers.pop()
    recipe.main(argv)


if __name__ == "__main__":
    main()
