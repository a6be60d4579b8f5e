"""Transformers' tests of models, generation, pipelines and configurations, of LLaVA and of ours."""

import unittest
from unittest import mock

from mqt_llava import (
    MQTLlavaForConditionalGeneration,
    MQTLlavaModel,
    QueCCLlavaForConditionalGeneration,
    QueCCLlavaModel,
)
from tests.generation.test_utils import GenerationTesterMixin
from tests.models.llava import test_modeling_llava
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.transformers_suites import registration
from tests.transformers_suites.model_testers import MQTTester, QueCCTester


class LLaVA(test_modeling_llava.LlavaForConditionalGenerationModelTest):
    pass


registration.register()


class ModelCase(ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin):
    _is_composite = True
    # CLIP's last norm has none: it serves the pooled output, which nothing reads. LLaVA's tests expect to fail there.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        config_class = self.all_model_classes[0].config_class
        self.config_tester = ConfigTester(
            self,
            config_class=config_class,
            has_text_modality=False,
            common_properties=["image_token_index", "vision_feature_layer"],
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def is_pipeline_test_to_skip_more(self, test_case, config, model, tokenizer, processor=None, **parts):
        # Its chats show pictures in blocks of type "images", which does not exist. LLaVA leaves such pictures out, our
        # template refuses them; without a template the test has no chats.
        if test_case == "AnyToAnyPipelineTests":
            processor.chat_template = None
        return super().is_pipeline_test_to_skip_more(test_case, config, model, tokenizer, processor=processor, **parts)


class MQT(ModelCase, unittest.TestCase):
    model_tester_class = MQTTester
    all_model_classes = (MQTLlavaModel, MQTLlavaForConditionalGeneration)
    pipeline_model_mapping = {
        "image-text-to-text": MQTLlavaForConditionalGeneration,
        "any-to-any": MQTLlavaForConditionalGeneration,
    }

    def test_generate_compile_model_forward_fullgraph(self):
        # This test halves every input along two dimensions, but the counts have one. They can be left out.
        with mock.patch.object(self.model_tester, "image_inputs", dict):
            super().test_generate_compile_model_forward_fullgraph()


class QueCC(ModelCase, unittest.TestCase):
    model_tester_class = QueCCTester
    all_model_classes = (QueCCLlavaModel, QueCCLlavaForConditionalGeneration)
    pipeline_model_mapping = {
        "image-text-to-text": QueCCLlavaForConditionalGeneration,
        "any-to-any": QueCCLlavaForConditionalGeneration,
    }

    def _image_features_prepare_config_and_inputs(self):
        # The suites take what an image is encoded with from a list of names, which lacks those of its question.
        config, inputs = super()._image_features_prepare_config_and_inputs()
        return config, {**inputs, **self.model_tester.image_inputs()}
