"""Transformers' tests of processors, of LLaVA's and of ours."""

import functools
import os
import unittest
from pathlib import Path
from unittest import mock

from transformers import AutoImageProcessor

from mqt_llava import MQTLlavaProcessor, QueCCLlavaProcessor
from tests.models.llava import test_processing_llava
from tests.test_processing_common import ProcessorTesterMixin
from tests.transformers_suites.tiny_checkpoints import MQT_TOKENS, QUECC_TOKENS


CHECKPOINTS = Path(os.environ["TRANSFORMERS_TINY_MODEL_PATH"])


class LLaVA(test_processing_llava.LlavaProcessorTest):
    # The repository on the Hub that transformers names here cannot be reached from everywhere.
    tiny_model_id = CHECKPOINTS / "llava" / "LlavaForConditionalGeneration"


class ProcessorCase(ProcessorTesterMixin):
    def setUp(self):
        # Ours run by PIL, whose pixels the models were trained on. Where torchvision is installed, the suite would
        # compare them with its pixels.
        by_pil = functools.partial(AutoImageProcessor.from_pretrained, backend="pil")
        patch = mock.patch.object(AutoImageProcessor, "from_pretrained", by_pil)
        patch.start()
        self.addCleanup(patch.stop)


class MQT(ProcessorCase, unittest.TestCase):
    processor_class = MQTLlavaProcessor
    tiny_model_id = CHECKPOINTS / "mqt_llava" / "MQTLlavaForConditionalGeneration"

    @staticmethod
    def prepare_processor_dict():
        return {"max_visual_tokens": MQT_TOKENS}


class QueCC(ProcessorCase, unittest.TestCase):
    processor_class = QueCCLlavaProcessor
    tiny_model_id = CHECKPOINTS / "quecc_llava" / "QueCCLlavaForConditionalGeneration"

    @staticmethod
    def prepare_processor_dict():
        return {"max_visual_tokens": QUECC_TOKENS}

    @classmethod
    def _setup_test_attributes(cls, processor):
        # An image needs a question behind it, but in the suites' prompts it is the last that is said.
        cls.image_token = f"{processor.image_token}\nWhat is it?"
