"""Batches for QueCC-LLaVA: the chat template's tokens, and each image's first question beside it."""

import pytest
import torch

from mqt_llava import QueCCLlavaConfig, QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor
from mqt_llava.training import (
    PLAIN_TEMPLATE,
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    QuestionCollator,
    build_collator,
    last_complete_checkpoint,
)
from tests.builders.conversations import answers_of, chat, expected_inputs
from tests.builders.teachers import llava_around


@pytest.fixture(params=[1, 2, 4], ids=["16 tokens", "4 tokens", "1 token"])
def kernel_size(request) -> int:
    return request.param


@pytest.fixture
def quecc_processor(embedded_processor, kernel_size) -> QueCCLlavaProcessor:
    return QueCCLlavaProcessor(
        embedded_processor.image_processor, embedded_processor.tokenizer, (4 // kernel_size) ** 2
    )


@pytest.fixture
def quecc_model(quecc_processor, kernel_size) -> QueCCLlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = QueCCLlavaConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 112, "patch_size": 28,
        },
        text_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": len(quecc_processor.tokenizer),
        },
        image_token_id=quecc_processor.image_token_id, kernel_size=kernel_size, vision_context_layers=[1, 2],
    )  # fmt: skip
    return QueCCLlavaForConditionalGeneration(config)


def rows_of_every_kind(picture) -> list[dict]:
    return [
        chat("What is there most of?", "Coats.", "Is there any footwear at all?", "Yes.", images=[picture]),
        chat("List the items.", "bag, coat", images=[picture, picture.resize((60, 90))]),
        chat("What is <image>?", "A word."),
    ]


def test_batch_is_what_the_processor_makes_of_the_conversations(quecc_processor, picture):
    rows = rows_of_every_kind(picture)
    batch = QuestionCollator(quecc_processor)(rows)
    expected = expected_inputs(quecc_processor, rows)
    assert set(batch) == {*expected, "labels"}
    for name in expected:
        torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)
    questions = quecc_processor.batch_decode(batch["query_input_ids"], skip_special_tokens=True)
    assert questions == ["What is there most of?", "List the items.", "List the items."]
    assert answers_of(quecc_processor, batch) == ["Coats.</s>Yes.</s>", "bag, coat</s>", "A word.</s>"]


def test_image_that_does_not_fit_takes_its_question_along(quecc_processor, picture):
    rows = [chat("List the items.", "bag", images=[picture]), chat("What is there most of?", "bags", images=[picture])]
    whole = QuestionCollator(quecc_processor)(rows)
    first = int((whole["input_ids"][0] == quecc_processor.image_token_id).nonzero()[0])
    cut = QuestionCollator(quecc_processor, max_length=first + quecc_processor.max_visual_tokens - 1)(rows)
    assert cut["pixel_values"].shape[0] == cut["query_input_ids"].shape[0] == 1  # the blank one


def test_text_alone_runs_every_part(quecc_processor, quecc_model):
    batch = QuestionCollator(quecc_processor)([chat("List the items.", "bag"), chat("And now?", "nothing")])
    assert batch["pixel_values"].shape[0] == batch["query_input_ids"].shape[0] == 1
    assert batch["attention_mask"][batch["input_ids"] == quecc_processor.image_token_id].sum() == 0
    quecc_model(**batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in quecc_model.model.resampler.named_parameters()}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


def test_template_without_questions_is_refused(quecc_processor, picture):
    collator = QuestionCollator(quecc_processor, chat_template=PLAIN_TEMPLATE)
    rows = [chat("Describe it.", "", images=[picture])]
    with pytest.raises(ValueError, match="no question behind <image>"):
        collator(rows)


def test_collator_goes_by_the_processor(quecc_processor, embedded_processor):
    collator = build_collator(quecc_processor, "FixedBudget(3)", is_stage_1=True)
    assert isinstance(collator, QuestionCollator) and collator.chat_template == quecc_processor.chat_template
    collator = build_collator(embedded_processor, "FixedBudget(3)", is_stage_1=True)
    assert not isinstance(collator, QuestionCollator) and collator.chat_template == PLAIN_TEMPLATE
    assert build_collator(embedded_processor, "FixedBudget(3)").chat_template == embedded_processor.chat_template


@pytest.mark.parametrize("parts", [["resampler"], ["resampler", "language_model"]])
def test_trainer_trains_saves_and_resumes(quecc_processor, quecc_model, picture, tmp_path, parts):
    rows = rows_of_every_kind(picture)[:2] * 4
    start = {name: parameter.detach().clone() for name, parameter in quecc_model.named_parameters()}

    def trainer(max_steps: int) -> MQTLlavaTrainer:
        args = MQTLlavaTrainingArguments(
            output_dir=tmp_path, trained_parts=parts, max_steps=max_steps, per_device_train_batch_size=2,
            learning_rate=1e-2, save_steps=2, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        return MQTLlavaTrainer(quecc_model, args, QuestionCollator(quecc_processor), train_dataset=rows)

    trainer(2).train()
    second = trainer(4)
    second.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    second.save_model()
    changed = {name for name, parameter in quecc_model.named_parameters() if not torch.equal(parameter, start[name])}
    assert any(".resampler." in name for name in changed)
    assert any(".language_model." in name for name in changed) == ("language_model" in parts)
    assert not any(".vision_tower." in name for name in changed)
    assert (tmp_path / "trained_parts.safetensors").exists() == (parts == ["resampler"])
    band = f"loss_m{quecc_processor.max_visual_tokens}"
    assert any(key.startswith(band) for entry in second.state.log_history for key in entry)


def test_quecc_learns_from_the_llava_that_it_was_made_of(quecc_processor, quecc_model, picture, tmp_path):
    def trainer(distillation, teacher=None) -> MQTLlavaTrainer:
        args = MQTLlavaTrainingArguments(
            output_dir=tmp_path, trained_parts=["resampler"], distillation=distillation, cross_entropy_weight=0,
            use_cpu=True, report_to="none",
        )  # fmt: skip
        rows = rows_of_every_kind(picture)
        return MQTLlavaTrainer(
            quecc_model, args, QuestionCollator(quecc_processor), teacher=teacher, train_dataset=rows
        )

    with pytest.raises(ValueError, match="`distillation` is 'self', but a QueCC-LLaVA has one number"):
        trainer("self")
    llava = llava_around(quecc_model)
    learning = trainer("llava", llava)
    batch = learning.data_collator(rows_of_every_kind(picture))
    is_answer, prompts, pixels = batch["labels"][:, 1:] != -100, batch["teacher"], batch["pixel_values"]
    with torch.no_grad():
        own = quecc_model.eval()(**{name: batch[name] for name in batch.keys() - {"teacher"}}).logits[:, :-1][
            is_answer
        ]
        theirs = llava(prompts["input_ids"], pixels, prompts["attention_mask"]).logits[:, :-1]
        theirs = theirs[prompts["labels"][:, 1:] != -100]
    for logits in (own, theirs):
        logits[:, quecc_processor.image_token_id] = -1e4
    expected = torch.nn.functional.kl_div(own.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    loss = learning.compute_loss(quecc_model, batch)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    reached = {name for name, parameter in quecc_model.named_parameters() if parameter.grad is not None}
    assert reached and all("resampler" in name for name in reached)


def test_checkpoint_of_the_other_compressor_is_refused(quecc_processor, quecc_model, picture, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mqt_llava"}')
    args = MQTLlavaTrainingArguments(output_dir=tmp_path, max_steps=1, use_cpu=True, report_to="none")
    rows = rows_of_every_kind(picture)
    trainer = MQTLlavaTrainer(quecc_model, args, QuestionCollator(quecc_processor), train_dataset=rows)
    with pytest.raises(ValueError, match="'mqt_llava', not of a 'quecc_llava'"):
        trainer.train()
