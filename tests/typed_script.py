"""A user's script, with the README's calls on this package's own classes. It is not run: mypy checks the types."""

import torch
from PIL import Image
from transformers.generation.utils import GenerateOutput
from typing_extensions import assert_type

from mqt_llava import (
    EMBEDDED_CHECKPOINT,
    AdaptiveBudget,
    MQTLlavaConfig,
    MQTLlavaForConditionalGeneration,
    MQTLlavaProcessor,
    QueCCLlavaForConditionalGeneration,
)
from mqt_llava.planning import RequestCost, largest_num_visual_tokens, request_cost
from mqt_llava.training import (
    BudgetCollator,
    ConversationDataset,
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    UniformBudget,
)
from mqt_llava.visualization import ImageAnswer, answer_heatmap


model = assert_type(
    MQTLlavaForConditionalGeneration.from_pretrained(EMBEDDED_CHECKPOINT), MQTLlavaForConditionalGeneration
)
processor = assert_type(MQTLlavaProcessor.from_pretrained(EMBEDDED_CHECKPOINT), MQTLlavaProcessor)
config = assert_type(model.config, MQTLlavaConfig)
assert_type(config.max_visual_tokens, int)

image = Image.open("examples/images/mosaic_0.png")
question = {"type": "text", "text": "List the items in the second row."}
# What it returns depends on `tokenize` and `return_dict`: it is Any, where transformers says str.
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image", "image": image}, question]}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
for m in (1, [4], "auto", AdaptiveBudget(levels=[1, 4], confidence=0.9)):
    output = assert_type(
        model.generate(**inputs, num_visual_tokens=m, max_new_tokens=40), GenerateOutput | torch.LongTensor
    )
    print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
encoded = model.get_image_features(inputs["pixel_values"])
model.generate(**inputs, mm_encoder_outputs={"image": encoded}, num_visual_tokens=4)

assert_type(request_cost(config, text_tokens=20, num_visual_tokens=4), RequestCost)
assert_type(largest_num_visual_tokens(config, text_tokens=20, flops=1e9), int)
answer = assert_type(ImageAnswer.ask(model, processor, image, "List the items."), ImageAnswer)
assert_type(answer_heatmap(answer, 4), torch.Tensor)

assert_type(MQTLlavaForConditionalGeneration.from_llava("llava", dtype="auto"), MQTLlavaForConditionalGeneration)
assert_type(MQTLlavaProcessor.from_llava("llava", pad_to_square=True), MQTLlavaProcessor)
new = assert_type(
    QueCCLlavaForConditionalGeneration.from_vision_text_pretrained("vision", "text"),
    QueCCLlavaForConditionalGeneration,
)
trainer = MQTLlavaTrainer(
    model,
    MQTLlavaTrainingArguments(output_dir="runs/mine", trained_parts=["resampler"]),
    BudgetCollator(processor, UniformBudget(1, 16)),
    train_dataset=ConversationDataset.from_json("conversations.json", image_folder="images"),
)
trainer.train()
