"""
How long a model takes on this machine, measured quickly and kept as a few points of seconds over FLOPs for each part.

A profile belongs to one model in one dtype on one device at batch size 1: small matrices and large ones, reading a
prompt and decoding run at different rates, so what one model shows does not carry over to another.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Cache, PreTrainedConfig, PreTrainedModel

from .cost import RequestCost, request_cost
from .decoders import decoder


PROMPT_LENGTHS = (4, 16, 64, 128, 256, 512, 1024)  # tokens
DECODE_STEPS = 12  # timed at each of two lengths
REPEATS = 5  # after one that warms up
SLOW = 5.0  # seconds; beyond that, nothing is repeated and no longer prompt is timed


@dataclass(frozen=True)
class Curve:
    """
    Seconds over FLOPs, never falling: straight lines between the points that were measured, the first point's seconds
    below them, and its last point's rate above.
    """

    flops: tuple[int, ...]
    seconds: tuple[float, ...]

    @classmethod
    def through(cls, points: list[tuple[int, float]]) -> "Curve":
        """Where noise makes a larger point faster, it takes on the seconds of the slower one below."""
        flops, seconds = zip(*sorted(dict(sorted(points)).items()))
        return cls(flops, tuple(accumulate(seconds, max)))

    def __call__(self, flops: float) -> float:
        if flops <= self.flops[0]:
            return self.seconds[0]
        if flops >= self.flops[-1]:
            return self.seconds[-1] * flops / self.flops[-1]
        after = next(i for i, other in enumerate(self.flops) if other >= flops)
        (low, high), (first, last) = self.flops[after - 1 : after + 1], self.seconds[after - 1 : after + 1]
        return first + (last - first) * (flops - low) / (high - low)


@dataclass(frozen=True)
class Profile:
    """
    Args:
        images: Vision tower and what follows it, over the FLOPs of both.
        prefill: Reading a prompt, or the question that an image is encoded for.
        decode_step: One token of the answer, over the FLOPs of one.
        weight_bytes: Of the model that was measured, to tell it from others.
        dtype: Its dtype, such as `"float32"`.
        device: What it was measured on, such as `"cpu"` or `"cuda:0"`.
    """

    images: Curve
    prefill: Curve
    decode_step: Curve
    weight_bytes: int
    dtype: str
    device: str

    def seconds(self, cost: RequestCost) -> float:
        """
        How long a request will take.

        Raises:
            ValueError: The request is one of another model, in another dtype or of a batch.
        """
        if cost.weight_bytes.total != self.weight_bytes or cost.batch_size != 1:
            raise ValueError(
                f"The profile is of a model with {self.weight_bytes} bytes of weights ({self.dtype}) at batch size 1, "
                f"but the request is of {cost.weight_bytes.total} bytes and batch size {cost.batch_size}."
            )
        seconds = self.images(cost.flops.vision_tower + cost.flops.compressor) + self.prefill(cost.flops.prefill)
        if cost.flops.question:
            seconds += self.prefill(cost.flops.question)
        if steps := cost.new_tokens - 1:
            seconds += steps * self.decode_step(cost.flops.decode / steps)
        return seconds

    def save(self, path: str | Path) -> None:
        """Writes a JSON file."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """
        Raises:
            ValueError: The file holds something else.
        """
        fields = json.loads(Path(path).read_text())
        try:
            for name in ("images", "prefill", "decode_step"):
                fields[name] = Curve(**{key: tuple(values) for key, values in fields[name].items()})
            return cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no profile: {error}") from error


@torch.inference_mode()
def measure_profile(
    model_or_config: PreTrainedModel | PreTrainedConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Profile:
    """
    Times a model's image path, prompts of several lengths and decoding, at batch size 1.

    Args:
        model_or_config: MQT-LLaVA, QueCC-LLaVA or LLaVA; from a configuration it is built with random weights.
        device, dtype: Where to build it, by default on the CPU, and in what, by default the configuration's dtype or
            else torch's. A model is measured as it is.

    Raises:
        ValueError: `device` or `dtype` is given along with a model, or a kind of model whose costs are not known.
    """
    if isinstance(model_or_config, PreTrainedModel):
        model, config = model_or_config, model_or_config.config
        if device is not None or dtype is not None:
            raise ValueError("`device` and `dtype` are for a configuration, but a model is given: move it yourself.")
        _smallest_cost(config)  # raises where costs are not known
    else:
        config = model_or_config
        _smallest_cost(config)
        with torch.device(device or "cpu"):
            model = AutoModelForImageTextToText.from_config(
                config, dtype=dtype or config.dtype or torch.get_default_dtype()
            )
    was_training = model.training
    model.eval()
    prefill, decode_step = _time_decoder(model)
    profile = Profile(
        images=_time_images(model),
        prefill=prefill,
        decode_step=decode_step,
        weight_bytes=_smallest_cost(config, dtype=model.dtype).weight_bytes.total,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
    )
    model.train(was_training)
    return profile


def _smallest_cost(config: PreTrainedConfig, **kwargs: Any) -> RequestCost:
    """A request of one token of text."""
    query_tokens = 1 if getattr(config, "model_type", None) == "quecc_llava" else None
    return request_cost(config, text_tokens=1, query_tokens=query_tokens, **kwargs)


def _timed(function: Callable, device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _median_time(function: Callable, device: torch.device) -> float:
    first = _timed(function, device)
    return first if first > SLOW else median(_timed(function, device) for _ in range(REPEATS))


def _time_images(model: Any) -> Curve:
    """
    One image and two, each as one visual token and as M where the model has the choice. QueCC's question is left out,
    for its time is that of a prompt.
    """
    config, points = model.config, []
    vision = config.vision_config
    size = vision.image_size if isinstance(vision.image_size, (list, tuple)) else (vision.image_size,) * 2
    choices = sorted({1, config.max_visual_tokens}) if config.model_type == "mqt_llava" else [None]

    def compress(pixels: torch.Tensor) -> torch.Tensor:
        _, (patches, *context) = model.model.encode_patches(pixels)
        question = patches.new_zeros(len(pixels), config.text_config.hidden_size)
        return model.model.resampler(patches, torch.cat(context, dim=-1), question)

    encode = compress if config.model_type == "quecc_llava" else model.get_image_features
    for num_images in (1, 2):
        pixels = torch.zeros(num_images, vision.num_channels, *size, dtype=model.dtype, device=model.device)
        for num_visual_tokens in choices:
            arguments = (pixels,) if num_visual_tokens is None else (pixels, [num_visual_tokens] * num_images)
            cost = _smallest_cost(config, num_visual_tokens=num_visual_tokens, num_images=num_images)
            seconds = _median_time(lambda arguments=arguments: encode(*arguments), model.device)
            points.append((cost.flops.vision_tower + cost.flops.compressor, seconds))
    return Curve.through(points)


def _time_decoder(model: PreTrainedModel) -> tuple[Curve, Curve]:
    """Prompts of text, the shortest and the longest of which are then continued."""
    config, device = model.config, model.device
    costs = decoder(config.text_config, config.tie_word_embeddings)
    most = config.text_config.max_position_embeddings - DECODE_STEPS
    token = torch.tensor([[0 if config.image_token_id else 1]], device=device)  # any but the placeholder

    def read(length: int) -> Cache:
        return model(input_ids=token.expand(1, length), use_cache=True, logits_to_keep=1).past_key_values

    points = []
    lengths = []
    for length in [length for length in PROMPT_LENGTHS if length <= most] or [1]:
        lengths.append(length)
        points.append((costs.prefill_flops(length), _median_time(lambda length=length: read(length), device)))
        if points[-1][1] > SLOW:
            break

    steps = []
    for length in sorted({lengths[0], lengths[-1]}):
        cache = read(length)

        def step(cache: Cache = cache) -> None:
            model(input_ids=token, past_key_values=cache, use_cache=True)

        seconds = median(_timed(step, device) for _ in range(DECODE_STEPS))
        steps.append((costs.decode_flops(length + DECODE_STEPS // 2), seconds))
    return Curve.through(points), Curve.through(steps)
