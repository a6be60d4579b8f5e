"""Small random models and prompts for them."""

import torch
from helpers import TEXT_CONFIG, tiny_config, tiny_quecc_config
from transformers import AutoConfig, PreTrainedConfig

from mqt_llava import (
    MQTLlavaConfig,
    MQTLlavaForConditionalGeneration,
    QueCCLlavaConfig,
    QueCCLlavaForConditionalGeneration,
)


IMAGE_TOKEN_ID = 99
DECODERS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
}


def random_model(config: MQTLlavaConfig | None = None, seed: int = 0) -> MQTLlavaForConditionalGeneration:
    """A model whose weights are large enough for images to change the answer."""
    torch.manual_seed(seed)
    model = MQTLlavaForConditionalGeneration(config or tiny_config()).eval()
    enlarge_weights(model)
    model.generation_config.eos_token_id = None  # so that every answer has the length that was asked for
    return model


def random_quecc_model(config: QueCCLlavaConfig | None = None, seed: int = 0) -> QueCCLlavaForConditionalGeneration:
    """A model whose weights are large enough for images and questions to change the answer."""
    torch.manual_seed(seed)
    model = QueCCLlavaForConditionalGeneration(config or tiny_quecc_config()).eval()
    enlarge_weights(model)
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def enlarge_weights(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.3, generator=generator)


def random_pixels(num_images: int, size: int = 28) -> torch.Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(7))


def random_inputs(*rows: list[int], image_size: int = 28) -> dict[str, torch.Tensor]:
    """
    What a processor would give, left-padded: a row is the visual tokens of each image in it, with text around them.
    """
    tokens = []
    for i, counts in enumerate(rows):
        tokens.append([1, 11 + i])
        for j, count in enumerate(counts):
            tokens[-1] += [IMAGE_TOKEN_ID] * count + [31 + i, 41 + j]
        tokens[-1] += [51 + i]
    length = max(map(len, tokens))
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in tokens]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in tokens]),
    }
    if counts := [count for row in rows for count in row]:
        inputs["pixel_values"] = random_pixels(len(counts), image_size)
        inputs["visual_token_counts"] = torch.tensor(counts)
    return inputs


def pad(rows: list[list[int]], side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask."""
    length = max(map(len, rows))
    padding = [[0] * (length - len(row)) for row in rows]
    if side == "left":
        ids = [zeros + row for zeros, row in zip(padding, rows)]
        mask = [zeros + [1] * len(row) for zeros, row in zip(padding, rows)]
    else:
        ids = [row + zeros for zeros, row in zip(padding, rows)]
        mask = [[1] * len(row) + zeros for zeros, row in zip(padding, rows)]
    return torch.tensor(ids), torch.tensor(mask)


def random_quecc_inputs(
    *rows: list[list[int]], side: str = "left", num_visual_tokens: int = 4
) -> dict[str, torch.Tensor]:
    """What a processor would give: a row is the question about each image in it, with text around them."""
    tokens = []
    for i, questions in enumerate(rows):
        tokens.append([1, 11 + i])
        for question in questions:
            tokens[-1] += [IMAGE_TOKEN_ID] * num_visual_tokens + [*question, 31 + i]
        tokens[-1] += [51 + i]
    ids, mask = pad(tokens, side)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if questions := [[1, *question] for row in rows for question in row]:
        inputs["pixel_values"] = random_pixels(len(questions))
        inputs["query_input_ids"], inputs["query_attention_mask"] = pad(questions, side)
    return inputs


def decoder_config(name: str) -> PreTrainedConfig:
    text_config = {"num_key_value_heads": 2, **TEXT_CONFIG}
    if name == "gpt2":
        text_config = {key: TEXT_CONFIG[key] for key in TEXT_CONFIG if key.endswith("_id") or key == "vocab_size"}
    return AutoConfig.for_model(name, **{**text_config, **DECODERS[name]})


def text_labels(inputs: dict, image_token_id: int = IMAGE_TOKEN_ID) -> torch.Tensor:
    """The text as labels: neither padding nor images are learned."""
    is_text = (inputs["attention_mask"] == 1) & (inputs["input_ids"] != image_token_id)
    return inputs["input_ids"].where(is_text, -100)
