"""Stage 0: a query transformer that learns from a LLaVA's projector, before the decoder is run."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor, QueCCLlavaForConditionalGeneration
from mqt_llava.training import ConversationDataset, ProjectorFitTrainer
from mqt_llava.training.projector_fit import ImageCollator
from mqt_llava.training.query_cells import coarse_to_fine_cells, pooling_weights
from tests.builders.llavas import llava_processor, tiny_llava


ANSWER = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "shoes"}]


@pytest.fixture
def llava():
    torch.manual_seed(0)
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
    own = {name: kwargs.pop(name) for name in ("order", "levels") if name in kwargs}
    if model is None:
        torch.manual_seed(0)
        model = MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=4)
    args = TrainingArguments(str(folder), **{**settings, **kwargs})
    dataset = ConversationDataset(rows)
    return model, ProjectorFitTrainer(model, args, teacher=llava, processor=processor, train_dataset=dataset, **own)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("number", [1, 4, 16, 64])
@pytest.mark.parametrize("grid", [8, 24, 27])
def test_coarse_to_fine_tokens_hold_every_cell_of_their_level(number, grid):
    """Each fourth quarter follows from the mean of its cell and the other three."""
    pooling = pooling_weights("coarse_to_fine", number, grid).double()
    torch.testing.assert_close(pooling[0], torch.full((grid**2,), 1 / grid**2, dtype=torch.double))
    level = pooling_weights("raster", number, grid).double()
    for rows in (pooling, torch.cat([pooling, level])):
        assert torch.linalg.matrix_rank(rows, rtol=1e-5) == number


@pytest.mark.parametrize("grid", [4, 8, 24])
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
def test_loss_is_the_error_beside_the_variance_of_the_patches(llava, processor, rows, tmp_path, order):
    model, trainer = build(llava, processor, rows, tmp_path, order=order)
    batch = trainer.data_collator(rows[:3])
    pixels = {"pixel_values": batch["pixel_values"]}
    tokens = torch.stack(list(llava.get_image_features(**pixels).pooler_output))
    cells = tokens.unflatten(1, (2, 2, 2, 2)).transpose(2, 3).mean((3, 4)).flatten(1, 2)  # of 4 x 4 patches, 2 x 2
    if order == "coarse_to_fine":
        cells = torch.stack([tokens.mean(1), cells[:, 0], cells[:, 3], cells[:, 1]], dim=1)
    ours = torch.stack(model.get_image_features(**pixels).pooler_output)
    expected = ((ours - cells) ** 2).mean() / ((tokens - tokens.mean((0, 1))) ** 2).mean()
    torch.testing.assert_close(trainer.model(**batch)["loss"], expected)


def test_it_learns_and_changes_the_query_transformer_alone(llava, processor, rows, tmp_path):
    model, trainer = build(llava, processor, rows, tmp_path, max_steps=400)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    assert losses(trainer)[-1] < 0.2 * losses(trainer)[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.resampler.{name}" for name, _ in model.model.resampler.named_parameters()}
    image = {"pixel_values": trainer.data_collator(rows[:1])["pixel_values"]}
    with torch.no_grad():
        cell = trainer.model.pooling[0] @ llava.get_image_features(**image).pooler_output[0]
        (token,) = model.get_image_features(**image, visual_token_counts=[1]).pooler_output
    assert (token[0] - cell).norm() < 0.5 * cell.norm()


def test_with_levels_the_query_transformer_also_learns_what_is_read_of_other_cells(llava, processor, rows, tmp_path):
    _, trainer = build(llava, processor, rows, tmp_path, levels=[1, 2])
    fit, batch = trainer.model, trainer.data_collator(rows[:5])
    with torch.no_grad():
        tokens = torch.stack(list(llava.get_image_features(batch["pixel_values"]).pooler_output))
        variance = (tokens - tokens.mean((0, 1))).square().mean()
    visual_tokens = torch.stack(fit.teacher.base.get_image_features(batch["pixel_values"]).pooler_output)
    read = 0.3 * fit.readers(visual_tokens, fit.pooling @ tokens) / variance
    with_levels, weight, fit.readers = fit(**batch)["loss"], fit.resampler.v_proj.weight, None
    without = fit(**batch)["loss"]
    torch.testing.assert_close(with_levels, without + read)
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (with_levels, without, read)]
    assert gradients[2].any()
    torch.testing.assert_close(gradients[0], gradients[1] + gradients[2])


def test_queries_start_at_their_cells(llava, processor, rows, tmp_path):
    """The raster is the table's own order, so there they stay."""
    model = MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=16)
    processor.max_visual_tokens, query = 16, model.model.resampler.query.clone()
    build(llava, processor, rows, tmp_path, model=model)[1].model.place_queries()
    torch.testing.assert_close(model.model.resampler.query, query)
    build(llava, processor, rows, tmp_path, model=model, order="coarse_to_fine")[1].model.place_queries()
    places = model.model.resampler.query - query + model.model.resampler.query_positions
    torch.testing.assert_close(places[0], model.model.resampler.query_positions.mean(0))


def test_resumed_to_the_bit_from_a_checkpoint_of_the_query_transformer(llava, processor, rows, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "levels": [1, 2]}
    whole, trainer = build(llava, processor, rows, tmp_path / "whole", **settings)
    trainer.train()
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    readers = {f"readers.maps.{offset}" for offset in (1, 2, 3)}
    assert saved.keys() == readers | {f"resampler.{name}" for name in whole.model.resampler.state_dict()}
    resumed, trainer = build(llava, processor, rows, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, value in whole.model.resampler.state_dict().items():
        assert torch.equal(value, resumed.model.resampler.state_dict()[name]), name


def test_text_alone_teaches_nothing(llava, processor, rows, tmp_path):
    model, trainer = build(llava, processor, rows, tmp_path)
    batch = trainer.data_collator(rows[-1:])
    assert batch["pixel_values"].shape == (1, 3, 28, 28)
    trainer.model(**batch)["loss"].backward()
    assert not model.model.resampler.query.grad.any() and not model.model.resampler.proj.weight.grad.any()


def test_pixels_are_those_of_the_processor(processor, rows):
    """Of raw rows too, whose images may be of any mode."""
    image = rows[3]["images"][0]
    image.putalpha(90)
    pixels = ImageCollator(processor)([{"messages": ANSWER, "images": [image]}])["pixel_values"]
    assert torch.equal(pixels, processor(images=image, text="<image>", return_tensors="pt")["pixel_values"])


def test_one_token_of_one_image_is_learned(llava, processor, rows, tmp_path):
    model = MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=1)
    processor.max_visual_tokens = 1
    _, trainer = build(llava, processor, rows[:3], tmp_path, model=model, per_device_train_batch_size=1)
    trainer.train()
    assert 0 < losses(trainer)[-1] < losses(trainer)[0] and model.model.resampler.query.isfinite().all()


def test_the_llava_learns_as_before(llava, processor, rows, tmp_path):
    build(llava, processor, rows, tmp_path)[1].train()
    assert all(parameter.requires_grad for parameter in llava.parameters())


def test_after_stage_0_in_another_dtype_the_llava_teaches(llava, processor, rows, tmp_path):
    """Its tower has layers that the model's lacks, which move along."""
    model, trainer = build(llava, processor, rows, tmp_path)
    model.model.vision_tower.double()
    assert trainer.model.teacher.num_visual_tokens(torch.zeros(1, 3, 28, 28)) == 16


def test_bad_input_is_named(llava, processor, rows, tmp_path):
    with pytest.raises(ValueError, match="`per_device_train_batch_size` is 1, but must be at least 2 with `levels`"):
        build(llava, processor, rows, tmp_path, levels=[2], per_device_train_batch_size=1)
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
