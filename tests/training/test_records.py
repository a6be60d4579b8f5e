"""Rows of both formats, and what is wrong with bad ones."""

from pathlib import Path

import pytest

from mqt_llava.training import RecordError, read_record


IMAGE = {"type": "image"}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def llava(*values: str, **row) -> dict:
    """Turns of human and gpt by turns."""
    roles = ("human", "gpt")
    turns = [{"from": roles[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "1", "conversations": turns, **row}


def chat(*contents, **row) -> dict:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return {"id": "1", "messages": messages, **row}


def test_llava_json():
    record = read_record(llava("<image>\nWhat is this?", "A desk.", "Which color?", "Brown.", image="a.jpg"))
    assert record.id == "1" and record.images == ["a.jpg"]
    assert record.messages == [
        {"role": "user", "content": [IMAGE, text("What is this?")]},
        {"role": "assistant", "content": [text("A desk.")]},
        {"role": "user", "content": [text("Which color?")]},
        {"role": "assistant", "content": [text("Brown.")]},
    ]


@pytest.mark.parametrize(
    "value, content",
    [
        ("<image>\nWhat?", [IMAGE, text("What?")]),
        ("What?\n<image>", [IMAGE, text("What?")]),
        ("What is <image> this?", [IMAGE, text("What is  this?")]),
        ("<image>", [IMAGE, text("")]),
        (" What? ", [IMAGE, text(" What? ")]),  # unmarked
        ("What is <Image>?", [IMAGE, text("What is <Image>?")]),
        ("<im<image>age>", [IMAGE, text("<image>")]),  # what is left is text, which the template writes apart
    ],
)
def test_markers_stand_anywhere(value, content):
    record = read_record(llava(value, "A desk.", image="a.jpg"))
    assert record.messages[0]["content"] == content


def test_a_marker_in_a_later_message():
    record = read_record(llava("Hello", "Hello", "What is this? <image>", "A desk.", image="a.jpg"))
    assert [message["content"] for message in record.messages[::2]] == [
        [text("Hello")],
        [IMAGE, text("What is this?")],
    ]


def test_several_images():
    rows = [
        llava("<image>\n<image>\nWhat differs?", "Color.", "And <image>?", "Size.", image=["a.jpg", "b.jpg", "c.jpg"]),
        llava("What differs?", "Color.", image=["a.jpg", "b.jpg"]),
    ]
    first, unmarked = map(read_record, rows)
    assert first.images == ["a.jpg", "b.jpg", "c.jpg"] and unmarked.images == ["a.jpg", "b.jpg"]
    assert first.messages[0]["content"] == [IMAGE, IMAGE, text("What differs?")]
    assert first.messages[2]["content"] == [IMAGE, text("And ?")]
    assert unmarked.messages[0]["content"] == [IMAGE, IMAGE, text("What differs?")]


def test_each_image_block_is_an_object_of_its_own():
    blocks = read_record(llava("<image><image>What?", "A.", image=["a", "b"])).messages[0]["content"]
    assert blocks[0] is not blocks[1]


@pytest.mark.parametrize("row", [{}, {"image": None}, {"image": []}, {"images": None}, {"images": []}], ids=str)
def test_text_only(row):
    for record in (read_record(llava("Who are you?", "A model.", **row)), read_record(chat("Who?", "Me.", **row))):
        assert record.images == [] and record.messages[0]["content"][0]["type"] == "text"


def test_system_messages():
    turns = [{"from": "system", "value": "Be brief. <image>"}, *llava("<image>What?", "A desk.")["conversations"]]
    record = read_record({"conversations": turns, "image": "a.jpg"})
    assert record.messages[0] == {"role": "system", "content": [text("Be brief. <image>")]}  # no marker there
    assert record.messages[1]["content"] == [IMAGE, text("What?")]
    messages = [{"role": "system", "content": "Be brief."}, *chat("What?", "A desk.")["messages"]]
    record = read_record({"messages": messages, "images": ["a.jpg"]})
    assert [len(message["content"]) for message in record.messages] == [1, 2, 1]  # the image is the user's


def test_answers_to_nothing_are_dropped():
    turns = llava("One.", "Two?", "Three.", "Four.")["conversations"]
    turns[0]["from"], turns[1]["from"], turns[2]["from"], turns[3]["from"] = "gpt", "gpt", "human", "gpt"
    record = read_record({"conversations": turns})
    assert [message["role"] for message in record.messages] == ["user", "assistant"]
    assert record.messages[0]["content"] == [text("Three.")]


# Chat messages


@pytest.mark.parametrize(
    "content, images",
    [
        ("What?", ["a"]),
        ([text("What?")], ["a"]),
        ([IMAGE, text("What?")], ["a"]),
        ([{"type": "image", "image": "a"}, text("What?")], []),
        ([{"type": "image", "image": "other"}, text("What?")], ["a"]),
        ([{"type": "image", "text": None}, {"type": "text", "text": "What?", "image": None}], ["a"]),
        ([{"type": "image", "text": None, "image": "a"}, {"type": "text", "text": "What?", "image": None}], None),
    ],
)
def test_forms_of_content(content, images):
    record = read_record(chat(content, "A desk.", images=images))
    assert record.images == ["a"]
    assert record.messages[0]["content"] == [IMAGE, text("What?")]
    assert record.messages[1]["content"] == [text("A desk.")]


def test_the_order_of_blocks_is_kept():
    content = [text("First"), IMAGE, text("then"), IMAGE]
    record = read_record(chat(content, "A desk.", images=["a", "b"]))
    assert record.messages[0]["content"] == content and record.images == ["a", "b"]


def test_what_a_user_types_is_no_marker():
    record = read_record(chat("What is <image> in HTML?", "An <image>.", images=["a"]))
    assert record.messages[0]["content"] == [IMAGE, text("What is <image> in HTML?")]
    assert read_record(chat("What is <image>?", "A tag.")).images == []
    assert read_record(llava("What?", "A tag, <image>.")).messages[1]["content"] == [text("A tag, <image>.")]


def test_rows_are_left_as_they_are():
    row = chat([{"type": "image", "image": "a"}, text("What?")], "A desk.")
    copies = [read_record(row) for _ in range(2)]
    assert row["messages"][0]["content"][0] == {"type": "image", "image": "a"}
    assert copies[0] == copies[1]


# Ids and paths


def test_ids():
    assert read_record(llava("a", "b", id=7)).id == "7" and read_record(llava("a", "b", id=0)).id == "0"
    rows = [llava("a", "b", id=None), llava("a", "c", id=None), chat("a", "b")]
    del rows[2]["id"]
    digests = [read_record(row).id for row in rows]
    assert digests[0] == digests[2] != digests[1]  # of the texts, in either format
    assert read_record(rows[0]).id == digests[0] and len(digests[0]) == 16


def test_images_lie_in_the_folder():
    images = ["a.jpg", "coco/b.jpg", "/elsewhere/c.jpg", "https://example.org/d.jpg", "file:///e.jpg", b"bytes"]
    record = read_record(llava("What?", "A desk.", image=images), Path("/data"))
    expected = [Path("/data/a.jpg"), Path("/data/coco/b.jpg"), Path("/elsewhere/c.jpg"), *images[3:]]
    assert record.images == expected
    assert read_record(llava("What?", "A desk.", image="a.jpg")).images == ["a.jpg"]


# Records that nothing can be learned from


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "1"}, "conversation is None"),
        ({"conversations": []}, r"conversation is \[\], but must be a list of messages"),
        ({"messages": []}, r"conversation is \[\]"),
        ({"messages": "What?"}, "conversation is 'What"),
        ({"messages": ["What?"]}, r"conversation is \['What\?'\], but must be a list of messages"),
        ({"conversations": None}, "conversation is None"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "from 'bot', but must be from one of human, gpt, system"),
        ({"conversations": [{"value": "a"}]}, "from None"),
        ({"conversations": [{"from": "human"}]}, "the text of a message is None"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role is 'tool', but must be one of user, assistant, sys"),
        ({"messages": [{"content": "a"}]}, "role is None"),
        ({"messages": [{"role": "user"}]}, "content of a message is None, but must be text, or text and image blocks"),
        (chat([{"type": "video"}], "A desk."), "content of a message is .*video"),
        (chat([{"type": "text", "text": None}], "A desk."), "content of a message is"),
        (chat([text("What?"), "What?"], "A desk."), "content of a message is"),
        (llava("What?"), "no message is an answer to another"),
        (llava("What?", image="a.jpg"), "no message is an answer to another"),
        ({"conversations": [{"from": "gpt", "value": "A desk."}]}, "no message is an answer"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "no message is an answer"),
        (
            {"messages": [{"role": r, "content": "a"} for r in ("system", "assistant")], "images": ["a"]},
            "no message is an answer",
        ),
        ({"messages": [{"role": r, "content": "a"} for r in ("system", "assistant", "user")]}, "no message is an ans"),
        (llava("<image><image>What?", "A desk.", image="a.jpg"), "the messages show 2 images, but it has 1"),
        (llava("<image>What?", "A desk."), "the messages show 1 images, but it has 0"),
        (llava("<image>What?", "A desk.", image=["a.jpg", "b.jpg"]), "the messages show 1 images, but it has 2"),
        (chat([IMAGE, IMAGE, text("a")], "b", images=["a.jpg"]), "the messages show 2 images, but it has 1"),
        (chat([IMAGE, text("a")], "b"), "the messages show 1 images, but it has 0"),
        (
            chat([{**IMAGE, "image": "a", "num_visual_tokens": 4}], "b"),
            "`num_visual_tokens`, but in training the budget",
        ),
        (chat([IMAGE, {**IMAGE, "image": "a"}], "b"), "the messages show 2 images, but it has 0"),
    ],
)
def test_bad_records_say_what_is_wrong(row, message):
    with pytest.raises(RecordError, match=message):
        read_record(row)
