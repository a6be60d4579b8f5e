"""Stage 0: a query transformer that learns from a LLaVA's projector, before the decoder is run."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor, QueCCLlavaForConditionalGeneration
from mqt_llava.training import ConversationDataset, ProjectorFitTrainer
from mqt_llava.training.query_cells import coarse_to_fine_cells, pooling_weights
from tests.builders.llavas import llava_processor, tiny_llava


ANSWER = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "shoes"}]


@pytest.fixture
def llava():
    return tiny_llava()


@pytest.fixture
def processor(llava):
    return MQTLlavaProcessor.from_llava(llava_processor(), max_visual_tokens=4)


@pytest.fixture
def rows():
    """Sixteen pictures of two colours, and one text without."""
    rows = []
    for number in range(16):
        image = Image.new("RGB", (28, 28), (17 * number, 90, 255 - 17 * number))
        image.paste((255 - 13 * number, 40, 13 * number), (0, 0, 28 - number, 14 + number % 8))
        rows.append({"messages": ANSWER, "images": [image]})
    return [*rows, {"messages": ANSWER}]


def build(llava, processor, rows, folder, model=None, **kwargs):
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    order = {"order": kwargs.pop("order")} if "order" in kwargs else {}
    if model is None:
        torch.manual_seed(0)
        model = MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=4)
    args = TrainingArguments(str(folder), **{**settings, **kwargs})
    dataset = ConversationDataset(rows)
    return model, ProjectorFitTrainer(model, args, teacher=llava, processor=processor, train_dataset=dataset, **order)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("number", [1, 4, 16, 64])
def test_coarse_to_fine_tokens_hold_every_cell_of_their_level(number):
    """Each fourth quarter follows from the mean of its cell and the other three."""
    pooling = pooling_weights("coarse_to_fine", number, 8)
    torch.testing.assert_close(pooling[0], torch.full((64,), 1 / 64))
    level = pooling_weights("raster", number, 8)
    assert torch.linalg.matrix_rank(pooling) == number == torch.linalg.matrix_rank(torch.cat([pooling, level]))


@pytest.mark.parametrize("grid", [6, 8, 27])
def test_raster_averages_as_adaptive_pooling(grid):
    states = torch.rand(1, 5, grid, grid)
    pooled = nn.functional.adaptive_avg_pool2d(states, 4).flatten(2)
    torch.testing.assert_close(states.flatten(2) @ pooling_weights("raster", 16, grid).T, pooled)


def test_coarse_to_fine_is_spread_wherever_it_ends():
    """No quarter of the image has two cells more of a level than another."""
    for number in range(5, 64):
        cells = coarse_to_fine_cells(number)
        finest = [(row * 2 // side, column * 2 // side) for side, row, column in cells if side == cells[-1][0]]
        counts = [finest.count((row, column)) for row in (0, 1) for column in (0, 1)]
        assert max(counts) - min(counts) <= 1, number
    assert len({*coarse_to_fine_cells(256)}) == 256


@pytest.mark.parametrize("order", ["coarse_to_fine", "raster"])
@torch.no_grad()
def test_loss_is_the_share_of_variance_that_is_left(llava, processor, rows, tmp_path, order):
    model, trainer = build(llava, processor, rows, tmp_path, order=order)
    batch = trainer.data_collator(rows[:3])
    tokens = torch.stack(list(llava.get_image_features(**batch).pooler_output))
    cells = tokens.unflatten(1, (2, 2, 2, 2)).transpose(2, 3).mean((3, 4)).flatten(1, 2)  # of 4 x 4 patches, 2 x 2
    if order == "coarse_to_fine":
        cells = torch.stack([tokens.mean(1), cells[:, 0], cells[:, 3], cells[:, 1]], dim=1)
    ours = torch.stack(model.get_image_features(**batch).pooler_output)
    expected = ((ours - cells) ** 2).sum() / ((cells - cells.mean((0, 1))) ** 2).sum()
    torch.testing.assert_close(trainer.model(**batch)["loss"], expected)


def test_it_learns_and_changes_the_query_transformer_alone(llava, processor, rows, tmp_path):
    model, trainer = build(llava, processor, rows, tmp_path, max_steps=150)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    assert losses(trainer)[-1] < 0.2 * losses(trainer)[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.resampler.{name}" for name, _ in model.model.resampler.named_parameters()}
    image = trainer.data_collator(rows[:1])
    with torch.no_grad():
        mean = llava.get_image_features(**image).pooler_output[0].mean(0)
        (token,) = model.get_image_features(**image, visual_token_counts=[1]).pooler_output
    assert (token[0] - mean).norm() < 0.5 * mean.norm()


def test_queries_start_at_their_cells(llava, processor, rows, tmp_path):
    """The raster is the table's own order, so there they stay."""
    model = MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=16)
    processor.max_visual_tokens, query = 16, model.model.resampler.query.clone()
    build(llava, processor, rows, tmp_path, model=model, order="raster")
    torch.testing.assert_close(model.model.resampler.query, query)
    build(llava, processor, rows, tmp_path, model=model)
    places = model.model.resampler.query - query + model.model.resampler.query_positions
    torch.testing.assert_close(places[0], model.model.resampler.query_positions.mean(0))


def test_resumed_to_the_bit_from_a_checkpoint_of_the_query_transformer(llava, processor, rows, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    whole, trainer = build(llava, processor, rows, tmp_path / "whole", **settings)
    trainer.train()
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == {f"resampler.{name}" for name in whole.model.resampler.state_dict()}
    resumed, trainer = build(llava, processor, rows, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, value in whole.model.resampler.state_dict().items():
        assert torch.equal(value, resumed.model.resampler.state_dict()[name]), name


def test_text_alone_brings_a_blank_image(llava, processor, rows, tmp_path):
    _, trainer = build(llava, processor, rows, tmp_path)
    batch = trainer.data_collator(rows[-1:])
    assert batch["pixel_values"].shape == (1, 3, 28, 28) and trainer.model(**batch)["loss"].isfinite()


def test_bad_input_is_named(llava, processor, rows, tmp_path):
    with pytest.raises(ValueError, match="`order` is 'spiral', but must be one of raster, coarse_to_fine"):
        build(llava, processor, rows, tmp_path, order="spiral")
    model = MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=4)
    with pytest.raises(TypeError, match="`teacher` is a MQTLlavaForConditionalGeneration, but must be the Llava"):
        build(model, processor, rows, tmp_path, model=model)
    quecc = QueCCLlavaForConditionalGeneration.from_llava(llava, kernel_size=2, vision_context_layers=[1, 2])
    with pytest.raises(TypeError, match="`model` is a QueCCLlavaForConditionalGeneration"):
        build(llava, processor, rows, tmp_path, model=quecc)
    with pytest.raises(ValueError, match="The projector of `teacher` is for other features"):
        build(tiny_llava(vision_feature_layer=-1), processor, rows, tmp_path, model=model)
