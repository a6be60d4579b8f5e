"""What an evaluation is told, read and checked."""

from typing import Any

from transformers import PreTrainedConfig

from ..models.configuration_compressed_llava import check_num_visual_tokens
from ..models.configuration_mqt_llava import MQTLlavaConfig


DEFAULT_STOP = "\n\n"  # which lmms-eval adds to tasks that name none; answers of several paragraphs are whole


def check_batch_size(value: Any) -> int:
    """
    Raises:
        ValueError: It is no positive integer, nor a text of one; "auto" is not possible.
    """
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"`batch_size` is {value!r}, but must be a positive integer.")
    return int(value)


def read_num_visual_tokens(text: str) -> int | str:
    """A number, or "auto", from a command line."""
    return int(text) if text.isdecimal() else text


def check_num_visual_tokens_or_auto(num_visual_tokens: Any, config: PreTrainedConfig) -> int | str | None:
    """
    An int in 1..M, "auto", or None.

    Raises:
        TypeError, ValueError: It is something else, or the model's number of visual tokens is fixed.
    """
    if num_visual_tokens is None:
        return None
    if not isinstance(config, MQTLlavaConfig):
        raise ValueError(
            f"`num_visual_tokens` is {num_visual_tokens!r}, but a {config.model_type} has a number of its own: "
            "leave it out."
        )
    if isinstance(num_visual_tokens, str) and num_visual_tokens != "auto":
        raise ValueError(
            f"`num_visual_tokens` is {num_visual_tokens!r}, but must be an integer in 1..{config.max_visual_tokens} "
            'or "auto".'
        )
    if num_visual_tokens != "auto":
        check_num_visual_tokens(num_visual_tokens, config.max_visual_tokens)
    return num_visual_tokens


def sampling(options: dict, max_new_tokens: int) -> tuple[dict, list[str]]:
    """
    A task's `generation_kwargs` as arguments of `generate`, and the texts that end an answer. Nothing is sampled
    unless `do_sample` says so, whatever the temperature.
    """
    arguments = {
        "max_new_tokens": options.get("max_new_tokens") or max_new_tokens,
        "do_sample": bool(options.get("do_sample")),
        "num_beams": options.get("num_beams") or 1,
    }
    if arguments["do_sample"]:
        arguments |= {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name)}
    stops = options.get("until") or []
    stops = [stops] if isinstance(stops, str) else stops
    return arguments, [stop for stop in stops if stop and stop != DEFAULT_STOP]
