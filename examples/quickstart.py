"""
The shortest way to an answer, at three numbers of visual tokens: `python examples/quickstart.py` in the repository.
"""

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mqt_llava  # registers the model with the auto classes

model = AutoModelForImageTextToText.from_pretrained("model_cards/mqt-llava-tiny")
processor = AutoProcessor.from_pretrained("model_cards/mqt-llava-tiny")

image = Image.open("examples/images/mosaic_0.png")
messages = [
    {
        "role": "user",
        "content": [{"type": "image", "image": image}, {"type": "text", "text": "List the items in the second row."}],
    }
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
for m in (1, 4, 16):
    output = model.generate(**inputs, num_visual_tokens=m, max_new_tokens=40)
    print(m, processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
