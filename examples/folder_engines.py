"""
Engines that answer one question about images, a batch at a time: what folder_to_jsonl.py asks.

Both answer greedily, in the checkpoint's own precision, and read the same tokens.
"""

from argparse import Namespace

from PIL import Image


def ask(question: str, image: Image.Image | None = None) -> list[dict]:
    """A conversation. Its text, which the chat template makes, is the same for all images."""
    item = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [item, {"type": "text", "text": question}]}]


class TransformersEngine:
    """All images of a batch at once."""

    default_batch_size = 16

    def __init__(self, args: Namespace):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        options = {"device_map": "auto", **args.engine_options}
        self.args = args
        self.model = AutoModelForImageTextToText.from_pretrained(args.model, **options).eval()
        self.processor = AutoProcessor.from_pretrained(args.model)

    def answer(self, images: list[Image.Image]) -> list[tuple[int, str]]:
        """The visual tokens that each image took, and the answer."""
        inputs = self.processor.apply_chat_template(
            [ask(self.args.question, image) for image in images],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        outputs = self.model.generate(
            **inputs,
            num_visual_tokens=self.args.num_visual_tokens,
            max_new_tokens=self.args.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
        )
        new_tokens = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in self.processor.batch_decode(new_tokens, skip_special_tokens=True)]
        is_auto = self.args.num_visual_tokens == "auto"
        used = outputs.visual_token_level.tolist() if is_auto else [self.args.num_visual_tokens] * len(texts)
        return list(zip(used, texts))


class VLLMEngine:
    """vLLM makes its own batches of what it is given, and so wants more at a time."""

    default_batch_size = 256

    def __init__(self, args: Namespace):
        from transformers import AutoConfig, AutoProcessor
        from vllm import LLM, SamplingParams

        # By itself vLLM would run a checkpoint in float32 with 16 bits.
        dtype = AutoConfig.from_pretrained(args.model).dtype or "auto"
        self.llm = LLM(args.model, **{"dtype": dtype, **args.engine_options})
        self.args = args
        self.processor = AutoProcessor.from_pretrained(args.model)
        text = self.processor.apply_chat_template(ask(args.question), add_generation_prompt=True, tokenize=False)
        # Without BOS, which this package's plugin puts in front where the template does not: as transformers does.
        self.prompt_ids = self.processor.tokenizer.encode(text, add_special_tokens=False)
        self.sampling = SamplingParams(temperature=0, max_tokens=args.max_new_tokens, detokenize=False)

    def answer(self, images: list[Image.Image]) -> list[tuple[int, str]]:
        """The visual tokens that each image took, and the answer."""
        from mqt_llava.serving.adaptive_engine import generate_adaptively

        prompts = [{"prompt_token_ids": self.prompt_ids, "multi_modal_data": {"image": image}} for image in images]
        number = self.args.num_visual_tokens
        if number == "auto":
            outputs, used = generate_adaptively(self.llm, prompts, self.sampling, use_tqdm=False)
        else:
            prompts = [{**prompt, "mm_processor_kwargs": {"num_visual_tokens": number}} for prompt in prompts]
            outputs, used = self.llm.generate(prompts, self.sampling, use_tqdm=False), [number] * len(prompts)
        new_tokens = [output.outputs[0].token_ids for output in outputs]
        texts = [text.strip() for text in self.processor.batch_decode(new_tokens, skip_special_tokens=True)]
        return list(zip(used, texts))


ENGINES = {"transformers": TransformersEngine, "vllm": VLLMEngine}
