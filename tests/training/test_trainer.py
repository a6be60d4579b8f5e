"""What a training step changes, logs and saves."""

import copy
import json
import random
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.training import (
    BudgetCollator,
    ConversationDataset,
    FixedBudget,
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    UniformBudget,
    load_trained_parts,
)
from tests.builders.configs import VISION_CONFIG
from tests.builders.models import count_calls
from tests.builders.paths import CHECKPOINT


@pytest.fixture
def model():
    """As the embedded checkpoint, with fewer layers and untrained."""
    config = copy.deepcopy(MQTLlavaForConditionalGeneration.config_class.from_pretrained(CHECKPOINT))
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 1, 1
    torch.manual_seed(0)
    return MQTLlavaForConditionalGeneration(config)


@pytest.fixture(scope="module")
def rows():
    """Questions of ragged lengths about noise; every fourth has no image."""
    rng = random.Random(0)
    rows = []
    for index in range(16):
        pixels = bytes(rng.randrange(256) for _ in range(3 * 8 * 8))
        answer = "sneaker, coat, dress " * rng.randint(1, 6)
        messages = [{"role": "user", "content": "List the items."}, {"role": "assistant", "content": answer.strip()}]
        images = [Image.frombytes("RGB", (8, 8), pixels)] if index % 4 else []
        rows.append({"id": str(index), "messages": messages, "images": images})
    return rows


@pytest.fixture(scope="module")
def image_rows(rows):
    return [row for row in rows if row["images"]]


def build_trainer(model, processor, rows, output_dir, budget=None, compute_loss_func=None, eval_rows=None, **kwargs):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = MQTLlavaTrainingArguments(output_dir=str(output_dir), **{**settings, **kwargs})
    collator = BudgetCollator(processor, budget or UniformBudget(1, 16), seed=args.seed)
    datasets = {"train_dataset": ConversationDataset(rows)}
    datasets |= {"eval_dataset": ConversationDataset(eval_rows)} if eval_rows else {}
    return MQTLlavaTrainer(model, args, collator, **datasets, compute_loss_func=compute_loss_func)


@pytest.mark.parametrize(
    "parts", [["resampler"], ["resampler", "language_model"], ["vision_tower", "resampler", "language_model"]]
)
def test_exactly_the_trained_parts_change(model, embedded_processor, rows, tmp_path, parts):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    build_trainer(model, embedded_processor, rows, tmp_path, trained_parts=parts).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    intended = {
        name
        for name in dict(model.named_parameters())
        if any(part in name for part in parts) or "lm_head" in name and "language_model" in parts
    }
    intended |= {"lm_head.weight"} if "language_model" in parts else set()  # tied to the embeddings
    assert changed <= intended
    # A key's bias moves all scores of a query alike, and the vision tower's last norm is for the pooled image.
    assert all(name.endswith("k_proj.bias") or "post_layernorm" in name for name in intended - changed)
    assert "model.resampler.query_positions" not in changed


@pytest.mark.parametrize(
    "rate_by_part",
    [{"resampler": 3e-3, "vision_tower": 2e-6}, {"language_model": 4e-6, "vision_tower": 2e-6}],
    ids=str,
)
def test_each_part_learns_at_its_own_rate(rate_by_part, model, embedded_processor, rows, tmp_path):
    rates = {f"{part}_learning_rate": rate for part, rate in rate_by_part.items()}
    parts = ["vision_tower", "resampler", "language_model"]
    trainer = build_trainer(
        model, embedded_processor, rows, tmp_path, trained_parts=parts, learning_rate=1e-5, weight_decay=0.1, **rates
    )
    groups = trainer.create_optimizer().param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    rate_of, decay_of = {}, {}
    for group in groups:
        for parameter in group["params"]:
            rate_of[names[parameter]], decay_of[names[parameter]] = group["lr"], group["weight_decay"]
    assert rate_of.keys() == set(names.values())
    for name, rate in rate_of.items():
        part = next((part for part in ("resampler", "vision_tower") if part in name), "language_model")
        assert rate == rate_by_part.get(part, 1e-5), name
    assert decay_of["model.resampler.q_proj.weight"] == 0.1
    assert decay_of["model.resampler.q_proj.bias"] == decay_of["model.resampler.ln_q.weight"] == 0.0


@pytest.mark.parametrize("parts", [[], ["querytransformer"], ["resampler", "lm_head"]])
def test_unknown_parts_are_refused(model, embedded_processor, rows, tmp_path, parts):
    with pytest.raises(ValueError, match="`trained_parts` is .* but must name some of vision_tower, resampler"):
        build_trainer(model, embedded_processor, rows, tmp_path, trained_parts=parts)


def test_loss_weighs_every_answer_token_alike(model, embedded_processor, image_rows, tmp_path):
    image_rows = image_rows[:5]
    trainer = build_trainer(model, embedded_processor, image_rows, tmp_path, FixedBudget(4))
    sums, numbers = [], []
    with torch.no_grad():
        for row in image_rows:
            batch = trainer.data_collator([row])
            numbers.append(int(batch["labels"][:, 1:].ne(-100).sum()))
            sums.append(float(model(**batch).loss) * numbers[-1])
        assert len(set(numbers)) > 1  # ragged
        batch = trainer.data_collator(image_rows)
        number = batch["labels"][:, 1:].ne(-100).sum()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=number)
    assert float(loss) == pytest.approx(sum(sums) / sum(numbers), rel=1e-5)


def test_nested_budgets_are_the_mean_of_single_ones(model, embedded_processor, image_rows, tmp_path):
    losses, gradients = [], []
    for budgets in [[FixedBudget(m)] for m in (2, 5, 16)] + [[FixedBudget(m) for m in (2, 5, 16)]]:
        trainer = build_trainer(model, embedded_processor, image_rows, tmp_path, budgets)
        model.zero_grad()
        batch = trainer.data_collator(image_rows[:4])
        number = batch["labels"][:, 1:].ne(-100).sum()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=number)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert losses[3] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)
    for name, gradient in gradients[3].items():
        mean = sum(single[name] for single in gradients[:3]) / 3
        torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-6)


def test_nested_budgets_encode_the_images_once(model, embedded_processor, image_rows, tmp_path):
    trainer = build_trainer(model, embedded_processor, image_rows, tmp_path, [FixedBudget(2), FixedBudget(16)])
    calls = count_calls(model.model.vision_tower)
    trainer.compute_loss(model, trainer.data_collator(image_rows))
    assert len(calls) == 1


def test_logs_hold_the_loss_by_number_of_visual_tokens(model, embedded_processor, rows, tmp_path):
    trainer = build_trainer(model, embedded_processor, rows, tmp_path, FixedBudget(5), max_steps=4)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 4
    for entry in steps:
        # Batches are of one kind, so the loss of the step is that of its kind.
        kinds = {name for name in entry if name.startswith("loss_")}
        assert kinds in ({"loss_m4-7"}, {"loss_text"})
        assert entry[kinds.pop()] == pytest.approx(entry["loss"], rel=1e-4)
        assert entry["train_tokens_per_second"] > 0
    assert {name for entry in steps for name in entry} >= {"loss_m4-7", "loss_text"}


@pytest.mark.parametrize(
    "budgets, steps, names",
    [((2, 16), 1, ["loss_m2-3", "loss_m16"]), ((16,), 3, ["loss_m16"])],
    ids=["nested", "steps"],
)
def test_logged_losses_are_means_over_budgets_and_accumulated_steps(
    model, embedded_processor, image_rows, tmp_path, budgets, steps, names
):
    budgets = [FixedBudget(m) for m in budgets]
    settings = {"gradient_accumulation_steps": steps, "max_steps": 1, "average_tokens_across_devices": steps > 1}
    trainer = build_trainer(model, embedded_processor, image_rows, tmp_path, budgets, **settings)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert sum(entry[name] for name in names) / len(names) == pytest.approx(entry["loss"], rel=1e-4)


def test_counts_of_bad_and_cut_records_are_logged(model, embedded_processor, rows, tmp_path):
    broken = [*rows, {"id": "broken", "messages": [{"role": "robot", "content": "?"}]}]
    trainer = build_trainer(model, embedded_processor, broken, tmp_path, num_train_epochs=1, max_steps=-1)
    trainer.data_collator.max_length = 40
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["bad_records"] == 1
    assert last["truncated_conversations"] > 0


def test_no_answer_within_the_length_is_no_nan(model, embedded_processor, rows, tmp_path):
    trainer = build_trainer(model, embedded_processor, rows, tmp_path, FixedBudget(16))
    trainer.data_collator.max_length = 3
    trainer.train()
    assert all(entry["loss"] == 0 for entry in trainer.state.log_history if "loss" in entry)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_gradient_checkpointing_changes_nothing(model, embedded_processor, rows, tmp_path):
    finals = []
    for checkpointing in (False, True):
        run = copy.deepcopy(model)
        trainer = build_trainer(run, embedded_processor, rows, tmp_path, gradient_checkpointing=checkpointing)
        trainer.train()
        finals.append(run.state_dict())
    for name, tensor in finals[0].items():
        torch.testing.assert_close(tensor, finals[1][name], rtol=1e-4, atol=1e-5)


class TestCheckpoints:
    def test_stage_1_saves_the_query_transformer_alone(self, model, embedded_processor, rows, tmp_path):
        base = copy.deepcopy(model)
        trainer = build_trainer(
            model, embedded_processor, rows, tmp_path, trained_parts=["resampler"], save_strategy="steps", save_steps=1
        )
        trainer.train()
        trainer.save_model()
        for folder in (tmp_path, tmp_path / "checkpoint-2"):
            assert not list(folder.glob("model*.safetensors"))
            saved = load_file(folder / "trained_parts.safetensors")
            assert set(saved) == {name for name, _ in model.named_parameters() if "resampler" in name}
        load_trained_parts(base, tmp_path)
        for name, tensor in base.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])

    def test_parts_of_another_model_are_refused_and_nothing_is_loaded(self, model, embedded_processor, rows, tmp_path):
        trainer = build_trainer(model, embedded_processor, rows, tmp_path, trained_parts=["resampler"])
        trainer.save_model()
        config = copy.deepcopy(model.config)
        config.max_visual_tokens = 9
        other = MQTLlavaForConditionalGeneration(config)
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(ValueError, match=r"another model: model.resampler.query \(16, 128\) \(here \(9, 128\)"):
            load_trained_parts(other, tmp_path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())

    def test_missing_parts_are_an_error(self, model, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"trained_parts.safetensors does not exist"):
            load_trained_parts(model, tmp_path)

    @pytest.mark.parametrize("parts", [["resampler"], ["resampler", "language_model"]])
    def test_a_checkpoint_cut_short_is_passed_over(self, model, embedded_processor, rows, tmp_path, parts):
        start = copy.deepcopy(model)
        settings = {"trained_parts": parts, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        build_trainer(model, embedded_processor, rows, tmp_path, **settings).train()
        (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
        (tmp_path / "checkpoint-9").mkdir()
        (tmp_path / "checkpoint-9" / "trainer_state.json").write_text('{"epoch": 0.')
        trainer = build_trainer(start, embedded_processor, rows, tmp_path, **settings)
        trainer.train(resume_from_checkpoint=True)
        for name, tensor in start.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name

    def test_experts_go_on_too(self, model, embedded_processor, rows, tmp_path):
        """Their weights have other names in a checkpoint than in memory."""
        config, llama = copy.deepcopy(model.config), model.config.text_config
        names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "pad_token_id")
        sizes = {name: getattr(llama, name) for name in names}
        config.text_config = AutoConfig.for_model(
            "mixtral", **sizes, num_hidden_layers=1, intermediate_size=64, num_local_experts=2
        )
        start = MQTLlavaForConditionalGeneration(config)
        whole, settings = copy.deepcopy(start), {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        build_trainer(whole, embedded_processor, rows, tmp_path, **settings).train()
        shutil.rmtree(tmp_path / "checkpoint-4")
        build_trainer(start, embedded_processor, rows, tmp_path, **settings).train(resume_from_checkpoint=True)
        torch.testing.assert_close(start.state_dict(), whole.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize("parts", [["resampler"], ["resampler", "language_model"]])
    def test_the_best_checkpoint_is_what_is_left(self, model, embedded_processor, rows, tmp_path, parts):
        settings = {"trained_parts": parts, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
        settings |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
        settings |= {"metric_for_best_model": "loss", "greater_is_better": True}  # so it is not the last
        trainer = build_trainer(
            model, embedded_processor, rows, tmp_path, FixedBudget(4), eval_rows=rows[:4], **settings
        )
        trainer.train()
        assert trainer.state.best_model_checkpoint != str(tmp_path / "checkpoint-3")
        left = copy.deepcopy(model.state_dict())
        trainer._load_from_checkpoint(tmp_path / "checkpoint-3")
        assert any(not torch.equal(tensor, left[name]) for name, tensor in model.state_dict().items())
        trainer._load_from_checkpoint(trainer.state.best_model_checkpoint)
        torch.testing.assert_close(model.state_dict(), left, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda config: setattr(config, "max_visual_tokens", 9), "max_visual_tokens 16 .now 9."),
            (lambda config: setattr(config.text_config, "num_hidden_layers", 2), "text_config.num_hidden_layers 1"),
            (lambda config: setattr(config.vision_config, "intermediate_size", 64), "vision_config.intermediate_size"),
        ],
    )
    @pytest.mark.parametrize("parts", [["resampler"], ["resampler", "language_model"]])
    def test_resuming_another_model_is_refused(
        self, model, embedded_processor, rows, tmp_path, parts, change, message
    ):
        settings = {"trained_parts": parts, "save_strategy": "steps", "save_steps": 1}
        build_trainer(model, embedded_processor, rows, tmp_path, **settings).train()
        config = copy.deepcopy(model.config)
        change(config)
        other = MQTLlavaForConditionalGeneration(config)
        trainer = build_trainer(other, embedded_processor, rows, tmp_path, FixedBudget(4), **settings)
        with pytest.raises(ValueError, match=f"checkpoint-2 is of another model: .*{message}"):
            trainer.train(resume_from_checkpoint=True)

    def test_a_foreign_output_folder_is_refused(self, model, embedded_processor, rows, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **VISION_CONFIG}))
        trainer = build_trainer(model, embedded_processor, rows, tmp_path)
        with pytest.raises(ValueError, match="is a checkpoint of a 'clip_vision_model', not of a 'mqt_llava'"):
            trainer.train()

    def test_nothing_to_resume_from_is_an_error(self, model, embedded_processor, rows, tmp_path):
        trainer = build_trainer(model, embedded_processor, rows, tmp_path)
        with pytest.raises(ValueError, match="holds no complete checkpoint"):
            trainer.train(resume_from_checkpoint=True)


def test_a_loss_of_ones_own_is_logged_by_number_as_well(model, embedded_processor, rows, tmp_path):
    def cross_entropy(outputs, labels, num_items_in_batch):
        losses = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].mT, labels[:, 1:], reduction="sum")
        return losses / num_items_in_batch

    histories = []
    for loss in (None, cross_entropy):
        trainer = build_trainer(copy.deepcopy(model), embedded_processor, rows, tmp_path, compute_loss_func=loss)
        trainer.train()
        histories.append(trainer.state.log_history[0])
    names = [name for name in histories[0] if name.startswith("loss")]
    assert len(names) > 1
    for name in names:
        assert float(histories[1][name]) == pytest.approx(float(histories[0][name]), rel=1e-4), name


def test_smoothed_labels_are_refused():
    with pytest.raises(ValueError, match="`label_smoothing_factor` is 0.1, but must be 0"):
        MQTLlavaTrainingArguments(label_smoothing_factor=0.1)
