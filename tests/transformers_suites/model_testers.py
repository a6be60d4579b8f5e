"""Tiny models and inputs for the suites, with the attributes that transformers' tests read of a model tester."""

import torch

from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG, tiny_config, tiny_quecc_config
from tests.test_modeling_common import floats_tensor, ids_tensor, torch_device


# A low one, since a test of the suites cuts off the end of the vocabulary.
IMAGE_TOKEN_ID = 3
# The suites want two layers at most, and all of them run.
TWO_LAYERS = {**VISION_CONFIG, "num_hidden_layers": 2}
CONFIG = {"vision_config": TWO_LAYERS, "vision_feature_layer": -1, "image_token_id": IMAGE_TOKEN_ID}


class TinyModelTester:
    """Prompts that show an image each, in front of their text. Subclasses say how many visual tokens that is."""

    num_visual_tokens: int

    batch_size = 3
    is_training = True
    vision_config, text_config = TWO_LAYERS, TEXT_CONFIG
    hidden_size = TEXT_CONFIG["hidden_size"]
    num_hidden_layers = TEXT_CONFIG["num_hidden_layers"]
    num_attention_heads = TEXT_CONFIG["num_attention_heads"]
    pad_token_id = TEXT_CONFIG["pad_token_id"]

    def __init__(self, parent):
        self.parent = parent
        self.seq_length = self.encoder_seq_length = self.num_visual_tokens + 7

    def prepare_config_and_inputs_for_common(self):
        input_ids = self.text_ids(self.seq_length, TEXT_CONFIG["vocab_size"])
        input_ids[:, : self.num_visual_tokens] = IMAGE_TOKEN_ID
        side = VISION_CONFIG["image_size"]
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, side, side]),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        return self.get_config(), {**inputs, **self.image_inputs()}

    def text_ids(self, length: int, vocabulary: int) -> torch.LongTensor:
        first = IMAGE_TOKEN_ID + 1  # behind the special tokens
        return ids_tensor([self.batch_size, length], vocabulary - first) + first

    def get_config(self):
        raise NotImplementedError

    def image_inputs(self) -> dict[str, torch.Tensor]:
        """What the processor returns besides, for one image in each prompt."""
        raise NotImplementedError


class MQTTester(TinyModelTester):
    num_visual_tokens = 9  # of 16

    def get_config(self):
        return tiny_config(**CONFIG)

    def image_inputs(self):
        return {"visual_token_counts": torch.full((self.batch_size,), self.num_visual_tokens, device=torch_device)}


class QueCCTester(TinyModelTester):
    num_visual_tokens = 4

    def get_config(self):
        return tiny_quecc_config(**CONFIG)

    def image_inputs(self):
        # None from the end of the vocabulary: the test that cuts it off spares `input_ids` alone.
        query_input_ids = self.text_ids(5, TEXT_CONFIG["vocab_size"] // 2)
        return {"query_input_ids": query_input_ids, "query_attention_mask": torch.ones_like(query_input_ids)}
