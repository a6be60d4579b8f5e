"""Images in every form that transformers users pass them in: the pixels are those that the model was trained on."""

import base64
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.builders.chats import PROMPT, tokenize_chat, user
from tests.builders.pictures import as_file, make_image, reference_pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "I", "I;16", "F", "1", "YCbCr"])
def test_pixels_of_every_mode_are_the_original_codes(processor, mode):
    if mode == "I;16":
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    else:
        image = make_image().convert(mode)
    if "A" in mode:
        image.putalpha(make_image(seed=1).convert("L"))
    pixels = processor(images=image, return_tensors="pt", num_visual_tokens=1)["pixel_values"][0]
    assert torch.allclose(pixels, reference_pixels(image), atol=1e-6)


@pytest.mark.parametrize("width, height", [(30, 20), (20, 31), (25, 25), (336, 336), (1, 1), (1, 90), (500, 341)])
def test_pixels_of_every_shape_are_the_original_codes(processor, width, height):
    image = make_image(width, height)
    pixels = processor(images=image, return_tensors="pt", num_visual_tokens=1)["pixel_values"][0]
    assert torch.allclose(pixels, reference_pixels(image), atol=1e-6)


def test_transparent_file_shows_what_is_under_its_alpha(processor, tmp_path):
    image = make_image()
    transparent = image.copy()
    transparent.putalpha(0)
    transparent.save(tmp_path / "transparent.png")
    rgba = np.asarray(transparent)
    for given in (transparent, str(tmp_path / "transparent.png"), rgba, torch.tensor(rgba).permute(2, 0, 1)):
        pixels = processor(images=given, return_tensors="pt", num_visual_tokens=1)["pixel_values"][0]
        assert torch.allclose(pixels, reference_pixels(image), atol=1e-6)


def transparent_files() -> dict[str, tuple[Image.Image, dict]]:
    """Images without an alpha channel, and what a PNG file of them says is transparent."""
    image = make_image()
    palette, gray = image.convert("P"), image.convert("L")
    return {
        "palette index": (palette, {"transparency": palette.getpixel((0, 0))}),
        "palette alphas": (palette, {"transparency": bytes(range(256))}),
        "RGB": (image, {"transparency": image.getpixel((0, 0))}),
        "gray": (gray, {"transparency": gray.getpixel((0, 0))}),
        "black and white": (image.convert("1"), {"transparency": 0}),
    }


@pytest.mark.parametrize("source", ["PIL", "path", "base64", "data URL", "URL", "chat"])
@pytest.mark.parametrize("name", transparent_files())
def test_transparent_colour_of_a_file_is_shown(processor, tmp_path, monkeypatch, name, source):
    image, options = transparent_files()[name]
    path = tmp_path / "image.png"
    image.save(path, **options)
    assert "transparency" in Image.open(path).info
    data = base64.b64encode(path.read_bytes()).decode()
    given = {"PIL": Image.open(path), "base64": data, "data URL": "data:image/png;base64," + data}.get(source, path)
    if source == "URL":
        response = SimpleNamespace(content=path.read_bytes())
        monkeypatch.setattr("transformers.image_utils.httpx.get", lambda *args, **kwargs: response)
        given = "https://example.com/image.png"
    if source == "chat":
        inputs = tokenize_chat(processor, [user(given)])
    else:
        inputs = processor(images=given, return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"][0], reference_pixels(image), atol=1e-6)
    if source == "PIL":
        assert "transparency" in given.info  # still: it is the caller's


def deep_image(mode: str) -> Image.Image:
    values = np.arange(600).reshape(20, 30)
    return Image.fromarray({"I;16": values.astype(np.uint16) * 100, "F": values.astype(np.float32) / 600}[mode])


@pytest.mark.parametrize("mode, suffix", [("I;16", "png"), ("I;16", "tiff"), ("F", "tiff")])
@pytest.mark.parametrize("source", ["PIL", "path", "data URL"])
def test_deep_pixels_are_the_original_codes_with_a_warning(processor, tmp_path, mode, suffix, source):
    image, path = deep_image(mode), tmp_path / f"image.{suffix}"
    image.save(path)
    data = f"data:image/{suffix};base64,{base64.b64encode(path.read_bytes()).decode()}"
    given = {"PIL": image, "path": path, "data URL": data}[source]
    with pytest.warns(UserWarning, match=rf"images\[1\] has values from 0.* \(mode {mode}\).*Scale it") as caught:
        pixels = processor(images=[make_image(), given], return_tensors="pt")["pixel_values"][1]
    assert len(caught) == 1
    assert torch.allclose(pixels, reference_pixels(image), atol=1e-6)


@pytest.mark.parametrize("mode", ["I", "F", "RGB", "L", "P", "1"])
def test_pixels_that_fit_into_8_bits_are_no_reason_to_warn(processor, mode, recwarn):
    image = make_image().convert(mode)
    processor(images=[image, image.crop((0, 0, 1, 1)).resize((9, 9))])  # of many values, and of one
    assert not recwarn.list


IMAGE_FORMATS = {
    "PIL": lambda image, path: image,
    "opened": lambda image, path: Image.open(path),
    "path": lambda image, path: str(path),
    "Path": lambda image, path: path,
    "base64": lambda image, path: base64.b64encode(as_file(image)).decode(),
    "data URL": lambda image, path: "data:image/png;base64," + base64.b64encode(as_file(image)).decode(),
    "array": lambda image, path: np.asarray(image),
    "array of int64": lambda image, path: np.asarray(image).astype(np.int64),
    "channels first": lambda image, path: np.asarray(image).transpose(2, 0, 1),
    "4-D array": lambda image, path: np.asarray(image)[None],
    "tensor": lambda image, path: torch.tensor(np.asarray(image)).permute(2, 0, 1),
    "4-D tensor": lambda image, path: torch.tensor(np.asarray(image)).permute(2, 0, 1)[None],
    "list": lambda image, path: [image],
    "tuple": lambda image, path: (image,),
    "nested": lambda image, path: [[image]],
    "nested path": lambda image, path: [[str(path)]],
}


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_image_can_come_as(processor, tmp_path, name):
    image = make_image()
    image.save(tmp_path / "image.png")
    given = IMAGE_FORMATS[name](image, tmp_path / "image.png")
    inputs = processor(images=given, text=[PROMPT], num_visual_tokens=1, return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"], reference_pixels(image)[None], atol=1e-6)


def test_image_can_come_from_a_url(processor, monkeypatch):
    response = SimpleNamespace(content=as_file(make_image()))
    monkeypatch.setattr("transformers.image_utils.httpx.get", lambda *args, **kwargs: response)
    messages = [{"role": "user", "content": [{"type": "image", "url": "https://example.com/image.png"}]}]
    inputs = tokenize_chat(processor, messages, processor_kwargs={"num_visual_tokens": 1})
    assert torch.allclose(inputs["pixel_values"], reference_pixels(make_image())[None], atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 20, 30)], ids=str)
def test_gray_arrays(processor, shape):
    gray = make_image().convert("L")
    array = np.asarray(gray).reshape(shape)
    pixels = processor(images=array, return_tensors="pt", num_visual_tokens=1)["pixel_values"][0]
    assert torch.allclose(pixels, reference_pixels(gray), atol=1e-6)


@pytest.mark.parametrize("where", ["call", "images_kwargs"])
def test_input_data_format_of_an_array_whose_shape_leaves_it_open(processor, where):
    array = np.asarray(make_image(3, 3))
    for data_format, image in (("channels_last", array), ("channels_first", array.transpose(2, 0, 1))):
        kwargs = {"input_data_format": data_format}
        kwargs = kwargs if where == "call" else {"images_kwargs": kwargs}
        pixels = processor(images=image, return_tensors="pt", **kwargs)["pixel_values"][0]
        assert torch.allclose(pixels, reference_pixels(make_image(3, 3)), atol=1e-6)


def test_images_are_not_changed(processor):
    image, array = make_image().convert("RGBA"), np.asarray(make_image()).copy()
    images = [[image], [array]]
    processor(images=images, text=[PROMPT, PROMPT], num_visual_tokens=1)
    assert images[0][0] is image and image.mode == "RGBA"
    assert (array == np.asarray(make_image())).all()
