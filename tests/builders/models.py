"""Small random models, whose weights are large enough for images and questions to change the answer."""

import torch

from mqt_llava import (
    MQTLlavaConfig,
    MQTLlavaForConditionalGeneration,
    QueCCLlavaConfig,
    QueCCLlavaForConditionalGeneration,
)
from tests.builders.configs import tiny_config, tiny_quecc_config


def random_model(config: MQTLlavaConfig | None = None, seed: int = 0) -> MQTLlavaForConditionalGeneration:
    torch.manual_seed(seed)
    return enlarged(MQTLlavaForConditionalGeneration(config or tiny_config()))


def random_quecc_model(config: QueCCLlavaConfig | None = None, seed: int = 0) -> QueCCLlavaForConditionalGeneration:
    torch.manual_seed(seed)
    return enlarged(QueCCLlavaForConditionalGeneration(config or tiny_quecc_config()))


def enlarged(model: torch.nn.Module) -> torch.nn.Module:
    enlarge_weights(model)
    model.generation_config.eos_token_id = None  # so that every answer has the length that was asked for
    return model.eval()


def count_calls(module: torch.nn.Module) -> list[torch.Size]:
    """The shapes of what comes into a module, call by call."""
    shapes = []
    module.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    return shapes


@torch.no_grad()
def enlarge_weights(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.3, generator=generator)
