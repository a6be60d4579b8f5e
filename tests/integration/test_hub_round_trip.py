"""From a conversion, or a training, to a Hub and back through its client, to processes without the package."""

import json
import re
import subprocess
import sys
from os import environ
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from tests.builders.loopback_hub import LoopbackHub
from tests.builders.paths import CHECKPOINT, FIXTURES, GOLDEN_NAMES, PICTURES, QUECC_GOLDEN_NAME, REPOSITORY
from tests.builders.processes import BLOCK, load_elsewhere, run_python
from tests.builders.scripts import load_script
from tests.integration.test_hub import MODEL_FILES, check_loaded


pytestmark = pytest.mark.costly
GENERATION = "generation_config.json"


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


def run_script(*arguments, environment: dict) -> None:
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], env={**environ, **environment}, cwd=REPOSITORY, capture_output=True,
        text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def commit_original(hub: LoopbackHub, name: str) -> None:
    """A released checkpoint as it lies on the Hub, and the vision tower that its configuration names."""
    folder = FIXTURES / name
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith("golden")]
    hub.commit("someone/original", {path.name: path.read_bytes() for path in files})
    hub.commit("someone/original", {"README.md": b"---\nlicense: llama2\ndatasets:\n- someone/data\n---\n\nHello.\n"})
    hub.commit_folder("someone/clip", folder / "openai-clip-tiny")


@pytest.mark.parametrize("kind", ["mqt", "quecc"])
def test_from_a_conversion_to_a_pipeline_without_the_package(hub, environment, tmp_path, kind):
    script = REPOSITORY / "conversion" / f"convert_{ {'mqt': 'mqt_llava', 'quecc': 'quecc'}[kind] }_weights_to_hf.py"
    commit_original(hub, {"mqt": GOLDEN_NAMES[0], "quecc": QUECC_GOLDEN_NAME}[kind])
    output = tmp_path / "converted"
    run_script(
        script, "--input", "someone/original", "--vision-tower", "someone/clip", "--output", output,
        "--push-to-hub", "you/converted", environment=environment,
    )  # fmt: skip
    assert hub.files("you/converted") == {path.name: path.read_bytes() for path in output.iterdir()}
    card = hub.card("you/converted")
    assert (card.data.license, card.data.datasets) == ("llama2", ["someone/data"])
    assert card.data.base_model == ["someone/original", "someone/clip"]

    # The first process downloads; the second is sent by the card.
    asked = {"num_visual_tokens": 4} if kind == "mqt" else {}
    result = load_elsewhere(sys.executable, "you/converted", tmp_path / "resaved", asked, environment=environment)
    assert set(result["modules"]) == {"transformers_modules"}
    check_loaded(result, output)
    assert hub.run_card("you/converted", tmp_path, BLOCK)
    assert "GET /you/converted/resolve/" in " ".join(hub.requests)


PUSH = """
import sys

import mqt_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, name = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
"""


PUSH_IN_EVERY_ORDER = """
processor.push_to_hub("you/processor-first")
model.push_to_hub("you/processor-first", tags=["mine"])
model.push_to_hub("you/model-first", tags="mine")
processor.push_to_hub("you/model-first")
model.save_pretrained("saved", push_to_hub=True, repo_id="you/saved")
processor.save_pretrained("saved", push_to_hub=True, repo_id="you/saved")
"""


@pytest.mark.parametrize("kind", ["mqt", "quecc"])
def test_a_model_is_pushed_with_a_card(request, hub, environment, tmp_path, kind):
    folder = request.getfixturevalue("converted_quecc") if kind == "quecc" else CHECKPOINT
    run_python(PUSH + PUSH_IN_EVERY_ORDER, str(folder), "", environment=environment, folder=tmp_path)
    for name in ("you/processor-first", "you/model-first", "you/saved"):
        card = hub.card(name)
        data = card.data.to_dict()
        assert data["tags"] == [f"{kind}-llava", *["mine"] * (name != "you/saved")]
        assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
        assert {"mqt": "any number from 1 to\n16 per image", "quecc": "here 36 per image"}[kind] in card.text
        assert "More Information Needed" not in card.text and str(folder) not in card.content
    if kind == "mqt":
        assert "1.7 million parameters" in card.text
        assert hub.run_card("you/model-first", tmp_path, BLOCK), "the embedded checkpoint answers in words"


WRITTEN = b"---\nlicense: mit\n---\n\n# Mine\n\nI wrote this.\n"


def test_a_card_that_somebody_wrote_stays(hub, environment, tmp_path):
    names = ("you/pushed", "you/saved")
    for name in names:
        hub.commit(name, {"README.md": WRITTEN})
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "README.md").write_text("Here, too.\n")
    push = """
model.push_to_hub("you/pushed")
model.save_pretrained("saved", push_to_hub=True, repo_id="you/saved")
"""
    run_python(PUSH + push, str(CHECKPOINT), "", environment=environment, folder=tmp_path)
    for name in names:
        assert "model.safetensors" in hub.files(name)
        card = hub.card(name)
        assert card.text.strip() == "# Mine\n\nI wrote this." and card.data.license == "mit"
    assert (folder / "README.md").read_text() == "Here, too.\n"


def test_a_template_that_somebody_filled_in_stays(hub, environment, tmp_path):
    card = ModelCard.from_template(ModelCardData(), developers="Me")
    hub.commit("you/mine", {"README.md": card.content.encode()})
    run_python(PUSH + "model.push_to_hub(name)", str(CHECKPOINT), "you/mine", environment=environment, folder=tmp_path)
    assert "**Developed by:** Me" in hub.card("you/mine").text


CALIBRATE = """
import json
from mqt_llava.planning import calibrate
pictures = json.loads(open(name + "/questions.json").read()).items()
prompts = [{"images": [f"{name}/{file}"], "messages": [{"role": "user", "content": question}]}
           for file, pairs in pictures for question, _ in pairs]
calibrate(model, processor, prompts, risk=0.3, confidence=0.8, num_probed_tokens=3)
model.push_to_hub("you/calibrated")
processor.push_to_hub("you/calibrated")
"""
ASK_WITHOUT_THE_PACKAGE = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
name, picture = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
inputs = processor(images=Image.open(picture), text="USER: <image>\\nList the items. ASSISTANT:", return_tensors="pt")
outputs = model.generate(**inputs, num_visual_tokens="auto", max_new_tokens=1, return_dict_in_generate=True)
print("RESULT", json.dumps([outputs.visual_token_level.item(), model.generation_config.adaptive_budget]))
"""


def test_a_calibrated_budget_keeps_its_promise_on_the_hub(hub, environment, tmp_path):
    run_python(PUSH + CALIBRATE, str(CHECKPOINT), str(PICTURES), environment=environment, folder=tmp_path)
    pushed = json.loads(hub.files("you/calibrated")[GENERATION])["adaptive_budget"]
    assert pushed["promise"]["risk"] == 0.3 and pushed["promise"]["levels"] == pushed["levels"] == [1, 4, 16]
    asked = ["you/calibrated", str(PICTURES / "mosaic_0.png")]
    printed = run_python(BLOCK + ASK_WITHOUT_THE_PACKAGE, *asked, environment=environment, folder=tmp_path)
    level, budget = json.loads(printed)
    assert budget == pushed and level == 16


def test_base_models_are_those_of_the_hub(hub, environment, tmp_path):
    hub.commit_folder("someone/tiny", CHECKPOINT)
    push = """
model.push_to_hub("you/tuned")
model.config._name_or_path = ""
model.config.vision_config._name_or_path, model.config.text_config._name_or_path = "a/tower", "b/decoder"
model.push_to_hub("you/joined")
model.config.text_config._name_or_path = "/on/my/disk"
model.push_to_hub("you/half")
"""
    run_python(PUSH + push, "someone/tiny", "", environment=environment, folder=tmp_path)
    assert hub.card("you/tuned").data.base_model == ["someone/tiny"]
    assert hub.card("you/joined").data.base_model == ["a/tower", "b/decoder"]
    assert hub.card("you/half").data.base_model == ["a/tower"]
    assert "disk" not in hub.card("you/half").content


def upload_tiny(hub: LoopbackHub, environment: dict, tmp_path: Path) -> Path:
    """What the two lines of `model_cards/prepare_upload.py` do."""
    output = tmp_path / "folder"
    script = REPOSITORY / "model_cards" / "prepare_upload.py"
    run_script(script, "mqt-llava-tiny", "--repo-id", "me/tiny", "--output", output, environment=environment)
    run_script(Path(sys.executable).parent / "hf", "upload", "me/tiny", output, environment=environment)
    return output


def test_the_embedded_checkpoint_goes_to_the_hub(hub, environment, tmp_path):
    output = upload_tiny(hub, environment, tmp_path)
    files = hub.files("me/tiny")
    assert files == {path.name: path.read_bytes() for path in output.iterdir()}
    assert {path.name for path in CHECKPOINT.iterdir()} | set(MODEL_FILES) == set(files)
    for name in ("evaluation.json", "adaptive.json", "mosaic_0.png", "model.safetensors", "tokenizer.json"):
        assert files[name] == (CHECKPOINT / name).read_bytes(), name
    ours, theirs = (json.loads(text) for text in ((CHECKPOINT / GENERATION).read_text(), files[GENERATION]))
    assert ours == {**theirs, "transformers_version": ours["transformers_version"]}

    asked = {"num_visual_tokens": 4}
    result = load_elsewhere(sys.executable, "me/tiny", tmp_path / "resaved", asked, environment=environment)
    assert set(result["modules"]) == {"transformers_modules"}
    check_loaded(result, CHECKPOINT)
    lines = hub.run_card("me/tiny", tmp_path, BLOCK).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "4", "16"] and len(set(lines[-1].split())) > 2


def test_a_folder_that_is_there_or_has_no_weights_is_refused(tmp_path, capsys):
    main = load_script("model_cards/prepare_upload.py").main
    (tmp_path / "there").mkdir()
    for name, output in (("mqt-llava-tiny", "there"), ("mqt-llava-7b", "new"), ("no-such-model", "new")):
        with pytest.raises(SystemExit, match="error: "):
            main([name, "--repo-id", "me/tiny", "--output", str(tmp_path / output)])
    assert not (tmp_path / "new").exists() and not list((tmp_path / "there").iterdir())


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("https://", "#"))]


@pytest.mark.parametrize("folder", [CHECKPOINT, CHECKPOINT.with_name("mqt-llava-7b")], ids=lambda folder: folder.name)
def test_the_cards_of_the_repository(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license and card.data.datasets and card.data.language and card.data.pipeline_tag
    for link in links(card.text):
        assert (folder / link).resolve().parent == folder, f"{link} is not beside the card on the Hub"


def test_the_card_of_the_embedded_checkpoint_gives_its_figures():
    card = ModelCard.load(CHECKPOINT / "README.md")
    measured = json.loads((CHECKPOINT / "evaluation.json").read_text())["results"]
    results = card.data.eval_results
    given = {(result.dataset_name.split()[-3], result.metric_name): result.metric_value for result in results}
    assert card.data.metrics == ["accuracy"] and card.data.model_name == "mqt-llava-tiny"
    for m in ("1", "4", "16"):
        for kind in measured:
            assert given.pop((m, kind)) == pytest.approx(100 * measured[kind]["accuracy"][m], abs=0.051)
    assert not given
