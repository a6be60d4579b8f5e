"""Conversations from files and datasets; bad ones are passed over, counted, and too many stop the run."""

import io
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mqt_llava.training import ConversationDataset, TooManyBadRecords
from tests.builders.paths import PICTURES


def make_rows(*images, **kwargs) -> list[dict]:
    turns = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "Clothes."}]
    rows = [{"id": f"row_{number}", "image": image, "conversations": turns} for number, image in enumerate(images)]
    return [{**row, **kwargs} for row in rows]


def write_images(folder) -> dict[str, str]:
    """Names of files by what is wrong with them."""
    (folder / "noise.png").write_bytes(np.random.default_rng(0).bytes(5000))
    Image.open(PICTURES / "mosaic_0.png").save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("<html>404</html>")
    (folder / "folder.png").mkdir()
    names = ("noise.png", "truncated.jpg", "empty.png", "text.png", "folder.png", "missing.png")
    return {name.split(".")[0]: name for name in names}


def test_records_of_a_file(llava_json, llava_rows):
    dataset = ConversationDataset.from_json(llava_json)
    assert len(dataset) == 6
    for index, row in enumerate(llava_rows):
        record = dataset[index]
        assert set(record) == {"id", "messages", "images"} and record["id"] == row["id"]
        assert record["messages"][1]["content"] == [{"type": "text", "text": row["conversations"][1]["value"]}]
        assert len(record["images"]) == ("image" in row)
        for image in record["images"]:
            original = Image.open(llava_json.parent / row["image"]).convert("RGB")
            assert image.mode == "RGB" and image.tobytes() == original.tobytes()
    assert dataset.event_counts.totals() == {"records": 6, "bad_records": 0}
    assert dataset[-1]["id"] == "text_1"
    for index in (6, -7):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_dataset_can_be_iterated_over(llava_json, llava_rows):
    assert [record["id"] for record in ConversationDataset.from_json(llava_json)] == [row["id"] for row in llava_rows]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_image_comes_out_in_rgb(mode, tmp_path):
    picture = Image.open(PICTURES / "mosaic_0.png").convert("RGB")
    picture.putpixel((0, 0), (0, 0, 0))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16))
    else:
        picture = picture.convert(mode)
    name = f"image.{'tiff' if mode == 'CMYK' else 'png'}"
    picture.save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode
    (image,) = ConversationDataset(make_rows(name), tmp_path)[0]["images"]
    assert image.mode == "RGB" and image.size == picture.size
    low, high = zip(*image.getextrema())
    assert max(low) < 10 and min(high) > 60


def test_ids_become_unique(caplog):
    caplog.set_level(logging.INFO)
    names = ["a", "a", "b", None, "a", "a (2)", "a (2)", 7, "7", "row 3"]
    rows = [{**row, "id": name} for row, name in zip(make_rows(*[None] * len(names)), names)]
    del rows[3]["id"]
    dataset = ConversationDataset(rows)
    assert dataset.ids[:5] == ["a", "a (2)", "b", "row 3", "a (3)"]
    assert len(set(dataset.ids)) == len(names) and all(isinstance(name, str) for name in dataset.ids)
    assert [dataset[index]["id"] for index in range(len(names))] == dataset.ids
    assert "6 of 10 records have the id of an earlier one" in caplog.text
    assert ConversationDataset(make_rows(None, None, id="b")).ids == ["b", "b (2)"]


# Bad records


@pytest.mark.parametrize("kind", ["noise", "truncated", "empty", "text", "folder", "missing"])
def test_a_bad_image_is_replaced_by_the_next_record(kind, picture_folder, caplog):
    name = write_images(picture_folder)[kind]
    dataset = ConversationDataset(make_rows("mosaic_0.png", name, "mosaic_1.png"), picture_folder)
    assert dataset[0]["id"] == "row_0" and dataset.event_counts.total("bad_records") == 0
    assert dataset[1]["id"] == "row_2" == dataset[2]["id"]
    assert dataset.event_counts.totals() == {"records": 4, "bad_records": 1}
    assert "Record 'row_1' (row 1) is passed over: " in caplog.text
    if kind in ("missing", "folder"):
        assert f"its image {picture_folder / name} does not exist." in caplog.text


def test_the_last_record_is_replaced_by_the_first(picture_folder):
    dataset = ConversationDataset(make_rows("mosaic_0.png", "missing.png"), picture_folder)
    assert dataset[1]["id"] == "row_0"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conversations": []}, r"its conversation is \[\]"),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "a message is from 'bot'"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "no message is an answer"),
        ({"conversations": ["Hi"]}, ""),
        ({"image": ["mosaic_0.png"] * 2, "conversations": "<image>"}, "its conversation is '<image>'"),
        ({"image": 7}, "int"),
    ],
)
def test_a_bad_conversation_is_replaced_by_the_next_record(changes, message, picture_folder, caplog):
    rows = make_rows("mosaic_0.png", "mosaic_1.png")
    rows[0].update(changes)
    dataset = ConversationDataset(rows, picture_folder)
    assert dataset[0]["id"] == "row_1" and dataset.event_counts.total("bad_records") == 1
    assert re.search(rf"Record 'row_0' \(row 0\) is passed over: .*{message}", caplog.text)


def test_too_many_bad_records_stop_the_run(picture_folder):
    names = ["mosaic_0.png"] * 10 + ["missing.png"] * 3 + ["mosaic_1.png"] * 10
    dataset = ConversationDataset(make_rows(*names), picture_folder, max_bad_share=0.02)
    with pytest.raises(TooManyBadRecords) as raised:
        for index in range(len(names)):
            dataset[index]
    # Two of a hundred are allowed, and few records are judged as if they were a hundred.
    for part in ("3 of the 13 records", "`max_bad_share` (0.02)", "'row_12' (row 12)", "missing.png does not exist"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "names, allowed, too_low, message",
    [
        (["missing.png", "missing.png", "mosaic_0.png"], 0.02, 0.0199, "2 of the 2 records"),  # as if of a hundred
        (["missing.png", "mosaic_0.png"], 0.01, 0, "1 of the 1 records"),  # none is allowed
        (["missing.png"] * 5, None, 1, "None of the 5 records can be used"),  # all are, but one is needed
    ],
    ids=["few", "none", "all"],
)
def test_shares_of_few_records(names, allowed, too_low, message, picture_folder):
    if allowed is not None:
        ConversationDataset(make_rows(*names), picture_folder, max_bad_share=allowed)[0]
    with pytest.raises(TooManyBadRecords, match=message):
        ConversationDataset(make_rows(*names), picture_folder, max_bad_share=too_low)[0]


def test_the_share_of_many_records_counts(picture_folder):
    rows = make_rows(*[None] * 999, "missing.png")
    dataset = ConversationDataset(rows, picture_folder, max_bad_share=0.0101)
    for _ in range(10):
        for index in range(901, 1000):
            dataset[index]
    assert dataset.event_counts.totals() == {"records": 1000, "bad_records": 10}
    with pytest.raises(TooManyBadRecords, match="11 of the 1001 records"):
        dataset[999]


def test_counts_of_workers_add_up(picture_folder):
    names = [f"mosaic_{number % 4}.png" for number in range(40)]
    names[5] = names[18] = names[29] = "missing.png"
    dataset = ConversationDataset(make_rows(*names), picture_folder, max_bad_share=0.05)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=lambda rows: [row["id"] for row in rows])
    ids = [name for batch in loader for name in batch]
    good = [number + (names[number] == "missing.png") for number in range(40)]
    assert ids == [f"row_{number}" for number in good]
    assert dataset.event_counts.totals() == {"records": 43, "bad_records": 3}
    # Each in a row of its own, so that none is lost when two count at once.
    assert dataset.event_counts.counts[:4].any(1).tolist() == [False, True, True, False]


def test_too_many_bad_records_of_all_workers_stop_the_run(picture_folder):
    """No worker alone has as many."""
    names = ["mosaic_0.png", "missing.png"] * 10
    dataset = ConversationDataset(make_rows(*names), picture_folder, max_bad_share=0.09)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list)
    with pytest.raises(TooManyBadRecords, match=r"`max_bad_share` \(0.09\) allows. The last one is 'row_1?\d' \(row"):
        list(loader)
    assert dataset.event_counts.total("bad_records") >= 10


# Files


def test_json_lines(picture_folder, llava_rows, monkeypatch):
    llava_rows[4]["conversations"][0]["value"] = "Line\u2028separator, next\u0085line, tab\tand \x1c"
    lines = [json.dumps(row, ensure_ascii=False) for row in llava_rows]
    (picture_folder / "rows.jsonl").write_text(
        "\n".join(lines[:3]) + "\n\n  \n" + "\r\n".join(lines[3:]) + "\n", "utf-8"
    )
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")  # as a locale may have it
    dataset = ConversationDataset.from_json(picture_folder / "rows.jsonl")
    assert dataset.rows == llava_rows
    assert dataset[0]["images"]


def test_the_image_folder_may_be_elsewhere(picture_folder, llava_rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "rows.json"
    path.write_text(json.dumps(llava_rows))
    assert ConversationDataset.from_json(path, picture_folder, max_bad_share=0)[0]["images"]
    assert ConversationDataset.from_json(str(path), str(picture_folder), max_bad_share=0)[0]["images"]
    with pytest.raises(TooManyBadRecords):
        ConversationDataset.from_json(path, max_bad_share=0)[0]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", "{", "a.json is not valid JSON: "),
        ("a.json", '{"id": 1}\n{"id": 2}', "a.json is not valid JSON: "),
        ("a.jsonl", '{"id": 1}\n{"id"', "a.jsonl is not valid JSON: "),
        ("a.json", "", "a.json is not valid JSON: "),
        ("a.json", '{"id": "1", "conversations": []}', "a.json must hold a list of records, each a JSON object"),
        ("a.json", '["a"]', "must hold a list of records"),
        ("a.jsonl", "[]\n", "must hold a list of records"),
        ("a.json", "[]", "`rows` is empty: there is nothing to train on"),
        ("a.jsonl", "\n", "`rows` is empty"),
        ("a.json", '[{"image": "a", "text": "b"}]', r"`rows` has \['image', 'text'\], but must have either LLaVA's"),
    ],
)
def test_files_of_another_kind_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        ConversationDataset.from_json(tmp_path / name)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        ConversationDataset.from_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="`image_folder` is .*none, which is no folder"):
        ConversationDataset(make_rows("a.png"), tmp_path / "none")
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"`max_bad_share` is {share}, but must be within 0..1"):
            ConversationDataset(make_rows("a.png"), max_bad_share=share)


def test_addresses_are_not_joined_to_the_folder(picture_folder, monkeypatch):
    asked = []
    monkeypatch.setattr("mqt_llava.training.dataset.load_rgb", lambda image, number: asked.append(image) or image)
    addresses = ["https://example.org/a.png", "http://example.org/b.png"]
    rows = make_rows(*addresses, ["mosaic_0.png", addresses[0]])
    dataset = ConversationDataset(rows, picture_folder)
    for index in range(3):
        dataset[index]
    assert asked == [*addresses, picture_folder / "mosaic_0.png", addresses[0]]


# Hugging Face datasets


def make_dataset(llava_rows):
    """The conversations with `messages` and `images`, as `datasets` holds them."""
    datasets = pytest.importorskip("datasets")
    roles = {"human": "user", "gpt": "assistant"}
    rows = []
    for row in llava_rows:
        messages = []
        for turn in row["conversations"]:
            blocks = [{"type": "text", "text": turn["value"].removeprefix("<image>\n")}]
            if turn["value"].startswith("<image>"):
                blocks.insert(0, {"type": "image", "text": None})
            messages.append({"role": roles[turn["from"]], "content": blocks})
        images = [{"bytes": (PICTURES / row["image"]).read_bytes()}] if "image" in row else []
        rows.append({"id": row["id"], "messages": messages, "images": images})
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


def test_a_dataset_gives_the_records_of_the_file(llava_json, llava_rows):
    one, other = ConversationDataset(make_dataset(llava_rows)), ConversationDataset.from_json(llava_json)
    assert len(one) == len(other) and one.ids == other.ids
    for index in range(len(one)):
        mine, theirs = one[index], other[index]
        assert mine["messages"] == theirs["messages"] and mine["id"] == theirs["id"]
        assert [image.tobytes() for image in mine["images"]] == [image.tobytes() for image in theirs["images"]]
        assert all(image.mode == "RGB" for image in mine["images"])


def test_a_corrupt_image_of_a_dataset_is_passed_over(llava_rows, caplog):
    datasets = pytest.importorskip("datasets")
    rows = make_dataset(llava_rows).cast_column("images", datasets.List(datasets.Image(decode=False))).to_list()
    rows[1]["images"][0]["bytes"] = b"noise" * 100
    broken = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    dataset = ConversationDataset(broken)
    assert dataset[1]["id"] == "mosaic_2.png" and "Record 'mosaic_1.png' (row 1) is passed over" in caplog.text


def test_sizes(picture_folder, llava_rows, monkeypatch):
    """Of files and datasets alike, without a look at any image."""
    dataset = make_dataset(llava_rows)
    # A file with the columns of LLaVA's, read as a dataset.
    flat = type(dataset).from_list([{"image": None, **row} for row in llava_rows])

    def refuse(*args, **kwargs):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    for rows in (llava_rows, dataset, flat, dataset.select([5, 4, 3, 2, 1, 0]), flat.shuffle(seed=0)):
        order = [row["id"] for row in llava_rows] if rows is llava_rows else rows["id"]
        sizes = dict(zip(order, ConversationDataset(rows, picture_folder).sizes))
        assert [sizes[row["id"]][0] for row in llava_rows] == [True] * 4 + [False] * 2
        assert all(isinstance(kind, bool) for kind, _ in sizes.values())
        lengths = {name: length for name, (_, length) in sizes.items()}
        assert lengths["text_0"] < min(lengths[f"mosaic_{number}.png"] for number in range(4))
        assert abs(lengths["text_0"] - lengths["text_1"]) == 1  # by a word


def test_a_dataset_of_another_kind_is_refused(llava_rows):
    with pytest.raises(ValueError, match=r"`rows` has \['id', 'images'\], but must have either"):
        ConversationDataset(make_dataset(llava_rows).remove_columns("messages"))


def test_a_dataset_without_ids(llava_rows):
    dataset = ConversationDataset(make_dataset(llava_rows).remove_columns("id"))
    assert dataset.ids == [f"row {index}" for index in range(6)]
    assert dataset[3]["id"] == "row 3"


def test_images_in_the_messages_count_as_images():
    blocks = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "What is it?"}]
    answer = {"role": "assistant", "content": "A bag."}
    rows = [
        {"messages": [{"role": "user", "content": blocks}, answer]},
        {"messages": [{"role": "user", "content": "Hello"}, answer]},
        {"messages": [None, answer]},
    ]
    assert [shows_image for shows_image, _ in ConversationDataset(rows).sizes] == [True, False, False]
