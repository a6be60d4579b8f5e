"""What a model learns from a teacher: the loss against one by hand, who gets gradients, and what is saved."""

import copy
import json
import random

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.training import (
    BudgetCollator,
    ConversationDataset,
    FixedBudget,
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    UniformBudget,
)
from tests.builders.models import count_calls, enlarge_weights
from tests.builders.paths import CHECKPOINT
from tests.builders.scripts import load_script
from tests.builders.teachers import llava_around


NUM_PATCHES = 64  # more than M, which is 16
T = 2.0


@pytest.fixture
def model():
    """As the embedded checkpoint, with fewer layers, and random weights under which every image token matters."""
    config = copy.deepcopy(MQTLlavaForConditionalGeneration.config_class.from_pretrained(CHECKPOINT))
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 2, 1
    config.vision_config.patch_size = 14
    torch.manual_seed(0)
    model = MQTLlavaForConditionalGeneration(config)
    enlarge_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model.eval()


@pytest.fixture(scope="module")
def rows():
    """Questions with answers of ragged lengths about noise; every fourth has no image."""
    rng, rows = random.Random(0), []
    for number in range(8):
        answer = ("sneaker, coat, dress " * (1 + number % 3)).strip()
        messages = [{"role": "user", "content": "List the items."}, {"role": "assistant", "content": answer}]
        images = [Image.frombytes("RGB", (8, 8), rng.randbytes(192))] if number % 4 else []
        rows.append({"id": str(number), "messages": messages, "images": images})
    return rows


def add_adapters(model, **kwargs):
    """LoRA that changes what the decoder says from the first step on, and the query transformer in full."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*(q|v)_proj", modules_to_save=["resampler"], init_lora_weights=False
    )
    return peft.get_peft_model(model, peft.LoraConfig(**{**config.to_dict(), **kwargs}))


def build_trainer(model, processor, rows, folder, budget=None, teacher=None, **kwargs):
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    settings |= {"distillation": "llava", "distillation_temperature": T, "trained_parts": ["resampler"]}
    args = MQTLlavaTrainingArguments(output_dir=str(folder), **{**settings, **kwargs})
    collator = BudgetCollator(processor, budget or FixedBudget(5), seed=args.seed)
    return MQTLlavaTrainer(model, args, collator, teacher=teacher, train_dataset=ConversationDataset(rows))


def loss_of(trainer, rows, model=None):
    batch = trainer.data_collator(rows)
    number = batch["labels"][:, 1:].ne(-100).sum()
    return trainer.compute_loss(model or trainer.model, batch, num_items_in_batch=number)


def answer_log_probs(logits, labels, image_token_id, temperature):
    """Of each answer token of one row, in float64; no model predicts the placeholder."""
    logits = logits[0, :-1][labels[0, 1:] != -100].double() / temperature
    logits[:, image_token_id] = float("-inf")
    return logits.log_softmax(-1)


@torch.no_grad()
def loss_by_hand(student, llava, processor, rows, m, weight):
    """Each row alone, by two separate models: the placeholders of the student's prompt are spread for LLaVA's."""
    total = number = 0
    for row in rows:
        batch = BudgetCollator(processor, FixedBudget(m))([row])
        ids, labels = batch["input_ids"], batch["labels"]
        if not row["images"]:  # the blank image at the end is the collator's own affair
            ids, labels, images = ids[:, :-1], labels[:, :-1], {}
        else:
            images = {"pixel_values": batch["pixel_values"]}
        is_image = ids[0] == processor.image_token_id
        repeats = torch.where(is_image & (is_image.cumsum(0) == 1), NUM_PATCHES, (~is_image).long())
        spread, spread_labels = (one.repeat_interleave(repeats, dim=1) for one in (ids, labels))
        student_logits = student(input_ids=ids, **images).logits
        own = answer_log_probs(student_logits, labels, processor.image_token_id, T)
        theirs = answer_log_probs(llava(spread, **images).logits, spread_labels, processor.image_token_id, T)
        total += T**2 * torch.where(theirs.exp() > 0, theirs.exp() * (theirs - own), 0).sum()
        answers = labels[0, 1:][labels[0, 1:] != -100]
        plain = answer_log_probs(student_logits, labels, processor.image_token_id, 1.0)
        total -= weight * plain.gather(1, answers[:, None]).sum()
        number += len(answers)
    return float(total / number)


@pytest.mark.parametrize("weight", [0, 0.5])
@pytest.mark.parametrize("kind", ["frozen", "lora", "separate"])
def test_loss_is_that_of_two_separate_models(model, embedded_processor, rows, tmp_path, kind, weight):
    llava, other = llava_around(model), MQTLlavaForConditionalGeneration(model.config).eval()
    enlarge_weights(other, seed=1)
    reference = copy.deepcopy(llava_around(other, seed=2) if kind == "separate" else llava)
    teacher = copy.deepcopy(reference) if kind == "separate" else llava
    student = add_adapters(model) if kind == "lora" else model
    trainer = build_trainer(student, embedded_processor, rows, tmp_path, teacher=teacher, cross_entropy_weight=weight)
    twin = copy.deepcopy(student)
    calls = count_calls(model.model.vision_tower)
    for batch in (rows[:4], [rows[0], rows[4]]):  # with images, and of text alone
        calls.clear()
        loss = loss_of(trainer, batch)
        assert len(calls) == 1  # images are encoded once for both
        assert float(loss.detach()) == pytest.approx(
            loss_by_hand(twin, reference, embedded_processor, batch, 5, weight), rel=1e-4
        )
    assert float(loss) > 0 if kind != "frozen" or weight else float(loss) == pytest.approx(0, abs=1e-5)


def test_the_teacher_reads_without_dropout_and_with_checkpointing(model, embedded_processor, rows, tmp_path):
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.5
    trainer = build_trainer(
        add_adapters(model, lora_dropout=0.5), embedded_processor, rows, tmp_path, teacher=llava_around(model),
        gradient_checkpointing=True,
    )  # fmt: skip
    batch = trainer.data_collator(rows[:4])
    logits = []
    for training in (True, False):
        trainer.model.train(training)
        with trainer.teacher.watch_images():
            trainer.model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"])
        logits.append(trainer.teacher.answer_logits(trainer.model, batch["teacher"], batch["pixel_values"]))
        assert trainer.model.training == training
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", ["frozen", "lora", "separate"])
def test_gradients_reach_what_is_trained_alone(model, embedded_processor, rows, tmp_path, kind):
    teacher = llava_around(copy.deepcopy(model) if kind == "separate" else model)
    student = add_adapters(model) if kind == "lora" else model
    parts = ["resampler", "language_model"] if kind == "separate" else ["resampler"]
    trainer = build_trainer(
        student, embedded_processor, rows, tmp_path, teacher=teacher, trained_parts=parts, cross_entropy_weight=0
    )
    loss_of(trainer, rows[:4]).backward()
    reached = {
        name for name, parameter in student.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    names = {
        "frozen": ["resampler."],
        "lora": ["resampler.modules_to_save", "lora_"],
        "separate": ["resampler.", "language_model.", "lm_head."],
    }
    intended = {name for name, _ in student.named_parameters() if any(part in name for part in names[kind])}
    # The last queries were not computed with, and a key's bias moves all scores of a query alike.
    assert reached <= intended and all(name.endswith("k_proj.bias") for name in intended - reached)
    own = set(student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters() if parameter not in own)


def test_the_model_teaches_itself(model, embedded_processor, rows, tmp_path):
    """The sandwich: the largest learns from the labels, the smallest and a random one from the largest."""
    budget, weight = [FixedBudget(1), UniformBudget(2, 15), FixedBudget(16)], 0.5
    settings = {
        "distillation": "self",
        "cross_entropy_weight": weight,
        "trained_parts": ["resampler", "language_model"],
    }
    trainer = build_trainer(model, embedded_processor, rows, tmp_path, budget, **settings)
    loss = loss_of(trainer, rows[1:4])
    loss.backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }

    model.zero_grad()
    batch, target, losses = trainer.data_collator(rows[1:4]), None, []
    for prompts in [batch, *batch.pop("nested")]:
        outputs = model(**{**prompts, "pixel_values": batch["pixel_values"]})
        logits = outputs.logits[:, :-1][prompts["labels"][:, 1:] != -100] / T
        if target is None:
            assert prompts["visual_token_counts"].tolist() == [16] * 3
            target = logits.detach().softmax(-1)
            losses.append(outputs.loss)
        else:
            kl = torch.xlogy(target, target).sum(-1) - (target * logits.log_softmax(-1)).sum(-1)
            losses.append(T**2 * kl.mean() + weight * outputs.loss)
    by_hand = sum(losses) / 3
    by_hand.backward()
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)


def test_the_teacher_reads_every_answer_token_whole(model, embedded_processor, rows, tmp_path):
    """Also where the length cuts the conversation: the teacher's prompt is cut there too, though it is longer."""
    trainer = build_trainer(model, embedded_processor, rows, tmp_path, teacher=llava_around(model))
    batch = trainer.data_collator(rows[:4])
    for max_length in (None, 60, 45, 3):
        trainer.data_collator.max_length = max_length
        batch = trainer.data_collator(rows[:4])
        for name, labels in (("input_ids", batch["labels"]), ("labels", batch["labels"])):
            own = batch[name][:, 1:][labels[:, 1:] != -100]
            assert torch.equal(own, batch["teacher"][name][:, 1:][batch["teacher"]["labels"][:, 1:] != -100])
        is_image = batch["teacher"]["input_ids"] == embedded_processor.image_token_id
        num_images = len(batch["pixel_values"]) if max_length != 3 else 0
        assert is_image.sum() == NUM_PATCHES * num_images and batch["teacher"]["attention_mask"][is_image].all()
        assert loss_of(trainer, rows[:4]).isfinite()


@pytest.mark.parametrize("distillation", ["llava", "self"])
def test_accumulated_steps_are_one_big_batch(model, embedded_processor, rows, tmp_path, distillation):
    budget, runs = [FixedBudget(1), FixedBudget(16)], []
    for steps in (1, 2):
        run = copy.deepcopy(model)
        settings = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 4 // steps, "max_steps": 2}
        settings |= {"distillation": distillation, "optim": "sgd", "learning_rate": 1e-3}
        teacher = llava_around(run) if distillation == "llava" else None
        trainer = build_trainer(run, embedded_processor, rows[1:4] + rows[5:], tmp_path, budget, teacher, **settings)
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        names = {"kl_m1"} | ({"kl_m16"} if distillation == "llava" else set())
        assert {name for entry in entries for name in entry if name.startswith("kl")} == names
        runs.append((entries, run.state_dict()))
    for entry, expected in zip(runs[0][0], runs[1][0], strict=True):
        for name in ("loss", "loss_m1", "loss_m16", *names):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4), name
        assert (entry["loss_m1"] + entry["loss_m16"]) / 2 == pytest.approx(entry["loss"], rel=1e-4)
    for name, tensor in runs[0][1].items():
        torch.testing.assert_close(tensor, runs[1][1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_a_resumed_run_is_the_same_and_nothing_of_the_teacher_is_saved(
    model, embedded_processor, rows, tmp_path, kind
):
    runs, teachers = {}, []
    for name, steps in (("plain", 1), ("whole", 4), ("stopped", 2), ("stopped", 4)):
        run = copy.deepcopy(model)
        teachers.append(llava_around(run) if name != "plain" else None)
        runs[name, steps] = student = add_adapters(run, lora_dropout=0.3) if kind == "lora" else run
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
        settings |= {"distillation": None if name == "plain" else "llava"}
        trainer = build_trainer(
            student, embedded_processor, rows, tmp_path / name, UniformBudget(1, 16), teachers[-1],
            **settings | {"max_steps": steps},
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=True if (name, steps) == ("stopped", 4) else None)
    whole, resumed = runs["whole", 4].state_dict(), runs["stopped", 4].state_dict()
    assert any(not torch.equal(whole[name], tensor) for name, tensor in runs["plain", 1].state_dict().items())
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not any("projector" in name for name in whole)
    (file,) = {"frozen": ["trained_parts.safetensors"], "lora": ["adapter_model.safetensors"]}[kind]
    names = []
    for name in ("plain", "whole"):
        with safe_open(tmp_path / name / "checkpoint-1" / file, "pt") as tensors:
            names.append(set(tensors.keys()))
    assert names[0] == names[1] and not any("projector" in name for name in names[1])
    expected = llava_around(model).model.multi_modal_projector.state_dict()
    for name, tensor in teachers[-1].model.multi_modal_projector.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_weights_in_4_bits(embedded_processor, rows, tmp_path):
    """The decoder's own weights teach beside their adapters, as the recipe of QLoRA sets them up."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    recipe = load_script("examples/train/finetune.py")
    config = BitsAndBytesConfig(
        load_in_4bit=True, llm_int8_skip_modules=["model.vision_tower", "model.resampler", "lm_head"]
    )
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, quantization_config=config, dtype="bfloat16")
    llava = llava_around(model)
    student = recipe.add_adapters(model, recipe.LoraArguments(lora_rank=4, load_in_4bit=True), ["resampler"])
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    trainer = build_trainer(student, embedded_processor, rows, tmp_path, teacher=llava, cross_entropy_weight=0)
    trainer.train()
    changed = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
    assert any("lora_" in name for name in changed) and any("resampler" in name for name in changed)


def test_the_scripts_load_a_teacher_for_a_decoder_that_trains(llava_json, tmp_path):
    llava_around(MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT)).save_pretrained(tmp_path / "llava")
    flags = (
        f"--model_name_or_path {CHECKPOINT} --data_path {llava_json} --output_dir {tmp_path / 'run'} --use_cpu true"
    )
    flags += f" --distillation llava --teacher_name_or_path {tmp_path / 'llava'} --budget FixedBudget(4) --max_steps 2"
    load_script("examples/train/finetune.py").main(f"{flags} --logging_steps 1 --report_to none".split())
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert all({"kl_m4-7", "kl_text"} & entry.keys() for entry in state["log_history"] if "loss" in entry)
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as tensors:
        assert not any("projector" in name for name in tensors.keys())


# Bad arguments


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"distillation": "llama"}, "`distillation` is 'llama', but must be 'llava', 'self' or left out"),
        ({"distillation_temperature": 0}, "`distillation_temperature` is 0, but must be a positive number"),
        ({"distillation_temperature": -1.0}, "`distillation_temperature` is -1.0, but must be"),
        ({"distillation_temperature": float("nan")}, "`distillation_temperature` is nan, but must be"),
        ({"cross_entropy_weight": -0.5}, "`cross_entropy_weight` is -0.5, but must be 0 or a positive number"),
        ({"distillation": "self"}, "`distillation` is 'self': .* `budget` is a single sampler. Give several"),
        ({"distillation": None, "teacher": "shared"}, "`teacher` is given, but `distillation` is None"),
        (
            {"teacher": "shared", "trained_parts": ["resampler", "language_model"]},
            "shares its language_model with the model, which trains it: .* `teacher=LlavaForConditionalGeneration",
        ),
        ({"teacher": "shared", "trained_parts": ["resampler", "vision_tower"]}, "shares its vision_tower with"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_refused(model, embedded_processor, rows, tmp_path, settings, message):
    teacher = llava_around(model) if settings.pop("teacher", None) else None
    with pytest.raises(ValueError, match=message):
        build_trainer(model, embedded_processor, rows, tmp_path, teacher=teacher, **settings)


@pytest.mark.parametrize("teacher", [None, "llava-hf/llava-1.5-7b-hf"])
def test_a_missing_teacher_is_named(model, embedded_processor, rows, tmp_path, teacher):
    with pytest.raises(TypeError, match="`teacher` is a .*, but must be the LlavaForConditionalGeneration"):
        build_trainer(model, embedded_processor, rows, tmp_path, teacher=teacher)


@pytest.mark.parametrize(
    "is_shared, change, message",
    [
        (True, {"vision_feature_layer": 1}, "for other features .*layer` 1, .* tower gives .*layer` -1"),
        (True, {"vision_feature_layer": [1, 2]}, r"for other features .`vision_feature_layer` \[1, 2\]"),
        (True, {"vision_feature_select_strategy": "full"}, "for other features .*'full'.* gives .*'default'"),
        (False, {"image_token_index": 7}, "`teacher` has `image_token_id` 7, but the model 560"),
        (False, {"vocab_size": 99}, "`teacher` has `text_config.vocab_size` 99, but the model 561"),
        (False, {"image_size": 336}, "`teacher` sees images of 336 pixels, but the processor makes them 112 wide"),
    ],
    ids=str,
)  # fmt: skip
def test_teachers_that_do_not_fit_are_refused(model, embedded_processor, rows, tmp_path, is_shared, change, message):
    if is_shared:
        teacher = llava_around(model, **change)
    else:
        teacher = llava_around(copy.deepcopy(model))
        for config in (teacher.config, teacher.config.text_config, teacher.config.vision_config):
            config.update({name: value for name, value in change.items() if name in config.to_dict()})
    with pytest.raises(ValueError, match=message):
        build_trainer(model, embedded_processor, rows, tmp_path, teacher=teacher)


def test_vision_towers_of_other_weights_are_refused(model, embedded_processor, rows, tmp_path):
    """The decoder is shared, but the projector was trained for another tower."""
    teacher = llava_around(model)
    teacher.model.vision_tower = copy.deepcopy(teacher.model.vision_tower)
    enlarge_weights(teacher.model.vision_tower, seed=3)
    with pytest.raises(ValueError, match="projector of `teacher` is for other features"):
        build_trainer(model, embedded_processor, rows, tmp_path, teacher=teacher)


@pytest.mark.parametrize("is_shared", [True, False])
def test_adapters_in_a_shared_vision_tower_are_refused(model, embedded_processor, rows, tmp_path, is_shared):
    teacher = llava_around(model)
    if not is_shared:
        teacher.model.language_model = copy.deepcopy(teacher.model.language_model)
    student = add_adapters(model, target_modules=r".*vision_tower.*q_proj")
    with pytest.raises(ValueError, match="`teacher` shares its vision_tower with the model, which trains it"):
        build_trainer(student, embedded_processor, rows, tmp_path, teacher=teacher)


def test_batches_without_labels_are_refused(model, embedded_processor, rows, tmp_path):
    trainer = build_trainer(model, embedded_processor, rows, tmp_path, teacher=llava_around(model))
    batch = trainer.data_collator(rows[:2])
    del batch["labels"]
    with pytest.raises(ValueError, match="`labels` is missing from the batch: distillation"):
        trainer.compute_loss(model, batch)
