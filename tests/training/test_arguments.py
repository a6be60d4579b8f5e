"""Arguments of the recipes, and the model, processor and conversations that they name."""

import json
from dataclasses import fields

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.training import BudgetCollator, FixedBudget, MQTLlavaTrainingArguments, parse_budget
from mqt_llava.training.arguments import DataArguments, ElasticArguments, ModelArguments, parse_arguments
from mqt_llava.training.assemble import build_processor, load_conversations, load_model_and_processor
from mqt_llava.training.checkpoints import save_trained_parts
from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


CHECKPOINT = str(REPOSITORY / "model_cards" / "mqt-llava-tiny")
RECIPES = REPOSITORY / "examples" / "train"


def load_recipe(name: str):
    return load_script(f"examples/train/{name}.py")


# Files and flags


@pytest.mark.parametrize("flag", [[], ["--config"]], ids=["first", "config"])
def test_flags_go_before_the_file(tmp_path, monkeypatch, flag):
    path = tmp_path / "settings.yaml"
    path.write_text("max_length: 5\nmax_bad_share: 1e-1\npad_to_square: false\nvision_context_layers: [1, 2]\n")
    argv = [*flag, str(path), "--max_length", "7", "--vision_context_layers", "3"]
    model_args, data_args = parse_arguments(ModelArguments, DataArguments, argv=argv)
    assert (data_args.max_length, data_args.max_bad_share) == (7, 0.1)
    assert (model_args.pad_to_square, model_args.vision_context_layers) == (False, [3])
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    assert parse_arguments(ModelArguments, DataArguments) == (model_args, data_args)


@pytest.mark.parametrize(
    "text, flags, named",
    [
        ("budgets: FixedBudget(4)", [], "budgets"),
        ("max_length: 5", ["--budgets", "FixedBudget(4)"], "budgets"),
        ("compressor: qecc", [], "`compressor` is 'qecc', but must be 'mqt' or 'quecc'"),
        ("max_length: 5", ["--compressor", "qecc"], "`compressor` is 'qecc', but must be 'mqt' or 'quecc'"),
    ],
    ids=str,
)
def test_what_is_not_known_is_named(tmp_path, text, flags, named):
    (tmp_path / "settings.yml").write_text(text)
    with pytest.raises(ValueError, match=named):
        parse_arguments(ModelArguments, DataArguments, argv=[str(tmp_path / "settings.yml"), *flags])


def test_what_is_not_said_is_as_the_configs_have_it():
    args = ModelArguments()
    for config, names in (
        (MQTLlavaConfig(), ["max_visual_tokens", "vision_feature_layer"]),
        (QueCCLlavaConfig(), ["kernel_size", "vision_context_layers", "vision_feature_layer"]),
    ):
        assert {name: getattr(args, name) for name in names} == {name: getattr(config, name) for name in names}


def test_every_argument_has_help():
    assert all(
        argument.metadata["help"]
        for one in (ElasticArguments, ModelArguments, DataArguments)
        for argument in fields(one)
    )


# The recipes' own files


@pytest.mark.parametrize(
    "path, recipe",
    [("pretrain_7b.yaml", "pretrain"), ("finetune_7b.yaml", "finetune"), ("finetune_7b_qlora.yaml", "finetune")],
)
def test_ready_settings(path, recipe):
    module = load_recipe(recipe)
    classes = {
        "pretrain": lambda: (ModelArguments, DataArguments, module.PretrainingArguments),
        "finetune": lambda: (ModelArguments, DataArguments, module.LoraArguments, MQTLlavaTrainingArguments),
    }[recipe]()
    argv = [str(RECIPES / path), "--use_cpu", "true"]
    model_args, data_args, *lora, args = parse_arguments(*classes, argv=argv)
    (budget,) = parse_budget(data_args.budget)
    assert budget.largest == model_args.max_visual_tokens == 256
    assert args.bf16 and args.warmup_steps == 0.03 and args.lr_scheduler_type == "cosine" and args.weight_decay == 0
    assert not args.remove_unused_columns
    if recipe == "pretrain":
        assert args.trained_parts == ["resampler"] and budget.weights == FixedBudget(256).weights
        assert args.learning_rate == 1e-3 and not model_args.pad_to_square
    else:
        assert args.trained_parts == ["resampler", "language_model"]
        assert set(budget.weights) == set(range(2, 257, 2)) and model_args.pad_to_square
        assert lora[0].load_in_4bit == ("qlora" in path) == bool(lora[0].lora_rank)
        assert args.learning_rate == (2e-4 if "qlora" in path else 2e-5)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * (1 if "qlora" in path else 8) == (
        256 if recipe == "pretrain" else 128
    )


@pytest.mark.parametrize("path", ["elasticize_7b.yaml", "elasticize_7b_qlora.yaml"])
def test_ready_settings_of_an_elastic_llava(path):
    classes = (ElasticArguments, DataArguments, load_recipe("finetune").LoraArguments, MQTLlavaTrainingArguments)
    elastic, data, lora, args = parse_arguments(*classes, argv=[str(RECIPES / path), "--use_cpu", "true"])
    (budget,) = parse_budget(data.budget)
    assert budget.weights[elastic.max_visual_tokens] == max(budget.weights.values())
    assert args.distillation == "llava" and elastic.fit_order == "raster" and elastic.fit_steps == 2000
    assert elastic.fit_levels == [64, 128]
    assert lora.load_in_4bit == ("qlora" in path) and lora.lora_rank == 64
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 64 and args.max_steps == 2000
    assert (REPOSITORY / data.chat_template).is_file()


@pytest.mark.parametrize("levels", ["64", "[0]", "[256]", "[a]"])
def test_levels_of_stage_0_are_a_list_of_numbers_below_all(tmp_path, levels):
    """In a file, which nobody has held against the types."""
    (tmp_path / "recipe.yaml").write_text(f"max_visual_tokens: 256\nfit_levels: {levels}\n")
    with pytest.raises(ValueError, match="`fit_levels` is .*, but must be a list of numbers of visual tokens below"):
        parse_arguments(ElasticArguments, argv=[str(tmp_path / "recipe.yaml")])


def test_four_bits_need_adapters():
    with pytest.raises(ValueError, match="`load_in_4bit` is True: .* so set `lora_rank`"):
        load_recipe("finetune").LoraArguments(load_in_4bit=True)


# Two models into one


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a CLIP of 28 pixels, the same as a whole CLIP, and a Llama whose tokenizer knows no `<image>`."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    text_config = {name: value for name, value in TEXT_CONFIG.items() if name != "num_key_value_heads"}
    CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG)).save_pretrained(folder / "clip_vision")
    CLIPModel(CLIPConfig(vision_config=VISION_CONFIG, text_config=text_config)).save_pretrained(folder / "clip")
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": 99},
        crop_size={"height": 99, "width": 99},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5] * 3,
    )
    for name in ("clip_vision", "clip"):
        pixels.save_pretrained(folder / name)
    source = json.loads((REPOSITORY / "model_cards" / "mqt-llava-tiny" / "tokenizer.json").read_text())
    source["added_tokens"] = [token for token in source["added_tokens"] if token["content"] != "<image>"]
    source["model"]["vocab"].pop("<image>", None)
    LlamaForCausalLM(LlamaConfig(**{**TEXT_CONFIG, "vocab_size": 560})).save_pretrained(folder / "llama")
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.save_pretrained(folder / "llama")
    (folder / "llama" / "tokenizer.json").write_text(json.dumps(source))
    settings = json.loads((folder / "llama" / "tokenizer_config.json").read_text())
    settings.update(pad_token=None, padding_side="right")
    (folder / "llama" / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("vision", ["clip_vision", "clip"])
def test_build_processor(parts, vision):
    assert "<image>" not in AutoTokenizer.from_pretrained(parts / "llama").get_vocab()
    processor = build_processor(str(parts / vision), str(parts / "llama"), 16)
    assert processor.max_visual_tokens == 16 and processor.image_token_id == 560
    tokenizer = processor.tokenizer
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == "<unk>"
    assert processor.image_processor.backend == "pil" and processor.image_processor.do_pad
    image = Image.new("RGB", (80, 40), "white")
    inputs = processor(images=image, text="a <image> b", return_tensors="pt", num_visual_tokens=3)
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)  # of the tower, not of its image processor
    means = inputs["pixel_values"][0, :, 14].mean(-1)
    torch.testing.assert_close(means, torch.tensor([1.8, 1.6, 1.4]))
    assert (inputs["input_ids"] == 560).sum() == 3


def test_a_pad_token_is_found(parts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(parts / "llama")
    tokenizer.unk_token = None
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(**TEXT_CONFIG).save_pretrained(tmp_path)
    assert build_processor(str(parts / "clip"), str(tmp_path), 16).tokenizer.pad_token == "</s>"


def test_a_new_model_learns(parts, picture):
    args = ModelArguments(
        vision_tower=str(parts / "clip"), language_model=str(parts / "llama"), max_visual_tokens=16,
        resampler_num_attention_heads=4, pad_to_square=False, attn_implementation="eager",
    )  # fmt: skip
    model, processor = load_model_and_processor(args)
    assert model.config.max_visual_tokens == processor.max_visual_tokens == 16
    assert model.config.image_token_id == processor.image_token_id == 560
    assert model.config.resampler_num_attention_heads == 4 and model.config.text_config.vocab_size == 561
    assert model.config.text_config._attn_implementation == model.config._attn_implementation == "eager"
    assert not processor.image_processor.do_pad and model.dtype == torch.float32
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "image": picture}]
    model.train()(**BudgetCollator(processor, FixedBudget(3))(rows)).loss.backward()
    assert model.model.resampler.query.grad.any()


def test_a_new_model_has_the_dtype_that_is_asked_for(parts):
    names = {"vision_tower": str(parts / "clip"), "language_model": str(parts / "llama"), "compressor": "quecc"}
    args = ModelArguments(**names, kernel_size=2, vision_context_layers=[1, 2], dtype="bfloat16")
    model, processor = load_model_and_processor(args)
    assert model.dtype == torch.bfloat16 and processor.max_visual_tokens == model.config.num_visual_tokens == 4


def test_a_checkpoint_with_the_parts_of_another_run(tmp_path):
    model, processor = load_model_and_processor(ModelArguments(model_name_or_path=CHECKPOINT, dtype="bfloat16"))
    assert model.dtype == torch.bfloat16 and processor.image_processor.do_pad
    query = torch.full_like(model.model.resampler.query, 0.5)
    save_trained_parts({"model.resampler.query": query}, tmp_path)
    args = ModelArguments(model_name_or_path=CHECKPOINT, dtype="bfloat16", trained_parts_from=str(tmp_path))
    args.attn_implementation = "eager"
    model, _ = load_model_and_processor(args)
    assert torch.equal(model.model.resampler.query, query)
    assert model.config._attn_implementation == model.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"vision_tower": "a"},
        {"language_model": "b"},
        {"model_name_or_path": "c", "vision_tower": "a", "language_model": "b"},
        {"model_name_or_path": "c", "vision_tower": "a"},
        {"model_name_or_path": "c", "language_model": "b"},
    ],
    ids=str,
)
def test_the_names_of_a_model_must_be_clear(names):
    with pytest.raises(ValueError, match="Name either `model_name_or_path`, a checkpoint, or both `vision_tower` and"):
        load_model_and_processor(ModelArguments(**names))


def test_a_model_of_transformers_own_is_refused(tmp_path):
    vision, text = CLIPVisionConfig(**VISION_CONFIG), LlamaConfig(**TEXT_CONFIG)
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=99)
    ).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    LlavaProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'llava', but must be a checkpoint of this package"):
        load_model_and_processor(ModelArguments(model_name_or_path=str(tmp_path)))


# Conversations


def test_conversations_of_a_file(llava_json):
    dataset = load_conversations(DataArguments(data_path=str(llava_json), max_bad_share=0.25))
    assert len(dataset) == 6 and dataset.max_bad_share == 0.25 and dataset[0]["images"]
    assert dataset.image_folder == llava_json.parent


def test_conversations_of_a_dataset(llava_json, llava_rows):
    pytest.importorskip("datasets")
    folder = llava_json.parent / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, llava_rows)))
    args = DataArguments(dataset_name=str(folder), image_folder=str(llava_json.parent), max_bad_share=0)
    dataset = load_conversations(args)
    assert len(dataset) == 6 and dataset[0]["images"] and not dataset[5]["images"]
    assert [shows_image for shows_image, _ in dataset.sizes] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("names", [{}, {"data_path": "a", "dataset_name": "b"}], ids=str)
def test_the_names_of_conversations_must_be_clear(names):
    with pytest.raises(ValueError, match="Name either `data_path` or `dataset_name`; got "):
        load_conversations(DataArguments(**names))
