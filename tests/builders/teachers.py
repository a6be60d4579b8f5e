"""transformers' LLaVA around the parts of a model of ours."""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.models import enlarge_weights


def llava_around(model: MQTLlavaForConditionalGeneration, seed: int = 0, **kwargs) -> LlavaForConditionalGeneration:
    """A LLaVA that shares vision tower, decoder and head with a model, and has a random projector of its own."""
    names = ("vision_config", "text_config", "image_token_id", "tie_word_embeddings", "vision_feature_select_strategy")
    settings = {name: getattr(model.config, name) for name in names}
    # Counted from the front, since what is behind it the model has dropped.
    settings["vision_feature_layer"] = model.model.used_vision_layers[0]
    config = LlavaConfig(**settings | kwargs)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower, llava.model.language_model = model.model.vision_tower, model.model.language_model
    llava.lm_head = model.lm_head
    torch.manual_seed(seed)
    llava.model.multi_modal_projector = LlavaMultiModalProjector(config)
    enlarge_weights(llava.model.multi_modal_projector, seed)
    return llava.eval()
