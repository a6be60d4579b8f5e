"""
The recipes as they are launched: two processes (DDP, FSDP2, ZeRO-3) against one, and runs that are killed.

Runs of one process are calls of the recipe's `main`; the others are real processes, over gloo.
"""

import contextlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image, ImageOps
from safetensors.torch import load_file

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY


pytestmark = pytest.mark.costly
PATIENCE = 900  # seconds until a run is taken to hang: a busy machine is slow


RECIPES = REPOSITORY / "examples" / "train"
SCRIPTS = {
    "pretrain": RECIPES / "pretrain.py",
    "finetune": RECIPES / "finetune.py",
    "finetune_from_llava": Path(__file__).with_name("finetune_from_llava.py"),
}
WEIGHTS = ("trained_parts.safetensors", "adapter_model.safetensors", "model.safetensors")

GLOBAL_BATCH = 8
STEPS = 16  # two epochs of 40 records with an image and 24 without
NESTED = "FixedBudget(2), FixedBudget(4), FixedBudget(16)"
LORA = {"lora_rank": 4, "lora_dropout": 0}
SELF = {"distillation": "self", "budget": NESTED, "distillation_temperature": 2}
LLAVA = {"distillation": "llava", "cross_entropy_weight": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """LLaVA's JSON: one to four questions about pieces of pictures, and conversations without a picture."""
    folder = tmp_path_factory.mktemp("data")
    rng, records = random.Random(0), []
    pictures = json.loads((PICTURES / "questions.json").read_text())
    for number in range(40):
        name = rng.choice(sorted(pictures))
        picture = Image.open(PICTURES / name).convert("RGB")
        width, height = (3 * side // 4 for side in picture.size)
        left, top = rng.randrange(width // 3), rng.randrange(height // 3)
        picture = picture.crop((left, top, left + width, top + height)).resize((112, 112))
        (ImageOps.mirror(picture) if number % 2 else picture).save(folder / f"{number}.png")
        turns = []
        for question, answer in rng.sample(pictures[name], 1 + number % 4):
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        records.append({"id": f"image_{number}", "image": f"{number}.png", "conversations": turns})
    for number in range(24):
        question, answer = "Is there any footwear? " * (1 + number % 4), "coat, " * (number % 5) + "bag"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append({"id": f"text_{number}", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


class Run:
    """
    One run of a recipe.

    Args:
        recipe: One of `SCRIPTS`.
        settings: Flags that differ from those below.
    """

    def __init__(self, recipe: str, data: Path, folder: Path, **settings):
        self.recipe, self.folder = recipe, folder
        self.settings = {
            "model_name_or_path": CHECKPOINT,
            "data_path": data,
            "output_dir": folder,
            "budget": "FixedBudget(4)",
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "adam_epsilon": 1e-4,  # so that gradients next to zero are no coins tossed
            "lr_scheduler_type": "cosine",
            "logging_steps": 1,
            "save_steps": STEPS,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        } | settings

    def flags(self, processes: int) -> list[str]:
        accumulation = self.settings.get("gradient_accumulation_steps", 1)
        settings = self.settings | {"per_device_train_batch_size": GLOBAL_BATCH // processes // accumulation}
        return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]

    def alone(self) -> "Run":
        """Runs to the end in this process."""
        main = runpy.run_path(str(SCRIPTS[self.recipe]))["main"]
        main([*self.flags(1), "--use_cpu", "true"])
        return self

    def start(self, kind: str | None = None, precision: str = "no") -> subprocess.Popen:
        """
        Args:
            kind: One of the accelerate configurations, for two processes, or `None` for one.
        """
        command, environment = [sys.executable], {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        flags = [str(SCRIPTS[self.recipe]), *self.flags(1 if kind is None else 2)]
        if kind is not None:
            config = RECIPES / "accelerate" / f"{kind}.yaml"
            command += ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
            command += ["--mixed_precision", precision, "--main_process_port", "0"]
        if kind in ("fsdp2", "zero3"):
            command.append(str(Path(__file__).with_name("launch_on_cpu.py")))
            environment |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
        else:
            flags += ["--use_cpu", "true"]
        self.log = self.folder.with_suffix(".log")
        with self.log.open("w") as log:
            return subprocess.Popen(command + flags, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, kind: str, **kwargs) -> "Run":
        """Runs to the end in two processes."""
        process = self.start(kind, **kwargs)
        try:
            returncode = process.wait(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                kill_all(process)
        assert returncode == 0, self.log.read_text()[-4000:]
        return self

    def kill(self, process: subprocess.Popen, moment: Callable[[], bool], delay: float = 0) -> None:
        """Kills all processes of a run with SIGKILL as soon as `moment()` is true, or `delay` seconds later."""
        deadline = time.monotonic() + PATIENCE
        try:
            while not moment():
                assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(delay)
        finally:
            is_running = process.poll() is None
            if is_running:
                kill_all(process)
        assert is_running and not complete_checkpoint(self.folder, STEPS)(), "The run was over before it was killed."

    def logs(self) -> dict[int, dict]:
        """What was logged, by step."""
        history = json.loads((self.folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        return {entry["step"]: entry for entry in history if "loss" in entry}

    def losses(self) -> list[dict[str, float]]:
        """The loss and its parts by number of visual tokens, of all steps."""
        logs = self.logs()
        assert sorted(logs) == list(range(1, STEPS + 1))
        return [
            {name: value for name, value in logs[step].items() if name.startswith(("loss", "kl"))}
            for step in sorted(logs)
        ]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(next(path for name in WEIGHTS if (path := self.folder / name).exists()))


def kill_all(process: subprocess.Popen) -> None:
    """Sends SIGKILL to a process and all that came of it; the launcher's have sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family[1:], timeout=30)


def assert_same_curve(run: Run, other: Run, tolerance: float = 1e-4) -> None:
    for step, (losses, expected) in enumerate(zip(run.losses(), other.losses()), 1):
        if not run.settings.get("group_by_modality_length", True):  # one process alone may see no image
            losses, expected = losses["loss"], expected["loss"]
        assert losses == pytest.approx(expected, abs=tolerance), f"step {step}"


def assert_close_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    weights = {name: weights[name] for name in weights if name in expected or name != "lm_head.weight"}  # tied
    assert weights.keys() == expected.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)


def assert_identical(run: Run, other: Run) -> None:
    assert run.losses() == other.losses()
    weights, expected = run.weights(), other.weights()
    assert weights.keys() == expected.keys()
    for name in weights:
        assert torch.equal(weights[name], expected[name]), name


def complete_checkpoint(folder: Path, step: int) -> Callable[[], bool]:
    return lambda: (folder / f"checkpoint-{step}" / "trainer_state.json").exists()


def unfinished_checkpoint(folder: Path, step: int) -> Callable[[], bool]:
    checkpoint = folder / f"checkpoint-{step}"
    return lambda: checkpoint.exists() and not (checkpoint / "trainer_state.json").exists()


class TestTwoProcessesAreOne:
    """Of the same global batch, some of text alone; the conversations have different lengths."""

    @pytest.mark.parametrize(
        "recipe, settings",
        [
            ("finetune", {}),
            pytest.param("pretrain", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
            pytest.param("finetune", {"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
            pytest.param("finetune", {"budget": NESTED, "group_by_modality_length": False}, marks=pytest.mark.slow),
            pytest.param("pretrain", {"budget": NESTED, "gradient_checkpointing": True}, marks=pytest.mark.slow),
            pytest.param("finetune", {"lora_rank": 4, "lora_dropout": 0}, marks=pytest.mark.slow),
            pytest.param("finetune", SELF, marks=pytest.mark.slow),
            pytest.param("finetune_from_llava", LLAVA | LORA | {"budget": NESTED}, marks=pytest.mark.slow),
        ],
        ids=["finetune", "pretrain", "accumulation", "nested", "nested-pretrain", "lora", "self", "llava"],
    )
    def test_ddp(self, data, tmp_path, recipe, settings):
        if "lora_rank" in settings:
            pytest.importorskip("peft")
        one = Run(recipe, data, tmp_path / "one", **settings).alone()
        two = Run(recipe, data, tmp_path / "two", **settings).finish("ddp")
        assert_same_curve(two, one)
        assert_close_weights(two.weights(), one.weights())
        assert {"loss_text", "loss_m4-7"} <= set().union(*one.losses()) or "group_by_modality_length" in settings
        for name in ("num_input_tokens_seen", "learning_rate"):
            assert [entry[name] for entry in two.logs().values()] == [entry[name] for entry in one.logs().values()]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "recipe, settings", [("pretrain", {}), ("finetune", {"budget": NESTED, "gradient_checkpointing": True})]
    )
    def test_fsdp2(self, data, tmp_path, recipe, settings):
        one = Run(recipe, data, tmp_path / "one", **settings).alone()
        two = Run(recipe, data, tmp_path / "two", **settings, save_steps=11).finish("fsdp2")
        assert_same_curve(two, one)
        assert_close_weights(two.weights(), one.weights())

        # What is saved is what one process saves, code included.
        for folder in ("", f"checkpoint-{STEPS}"):
            code = [sorted(path.name for path in (run.folder / folder).glob("*.py")) for run in (one, two)]
            assert code[0] == code[1]
            assert json.loads((two.folder / folder / "config.json").read_text()) == json.loads(
                (one.folder / folder / "config.json").read_text()
            )
            if recipe == "finetune":
                model, info = MQTLlavaForConditionalGeneration.from_pretrained(
                    two.folder / folder, output_loading_info=True
                )
                assert not any(info.values())
                assert_close_weights(model.state_dict(), {**model.state_dict(), **one.weights()})

        if recipe == "finetune":  # the other recipe is killed below
            resumed = Run(recipe, data, tmp_path / "resumed", **settings, save_steps=11)
            shutil.copytree(two.folder / "checkpoint-11", resumed.folder / "checkpoint-11")
            assert_identical(resumed.finish("fsdp2"), two)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "recipe, settings",
        [
            ("finetune", SELF),
            ("finetune_from_llava", LLAVA | {"trained_parts": "resampler", "gradient_checkpointing": True}),
            ("finetune_from_llava", LLAVA | LORA),
        ],
        ids=["self", "llava", "llava-lora"],
    )
    def test_fsdp2_with_a_teacher(self, data, tmp_path, recipe, settings):
        one = Run(recipe, data, tmp_path / "one", **settings).alone()
        two = Run(recipe, data, tmp_path / "two", **settings, save_steps=11).finish("fsdp2")
        assert_same_curve(two, one)
        assert_close_weights(two.weights(), one.weights())
        resumed = Run(recipe, data, tmp_path / "resumed", **settings, save_steps=11)
        shutil.copytree(two.folder / "checkpoint-11", resumed.folder / "checkpoint-11")
        assert_identical(resumed.finish("fsdp2"), two)

    @pytest.mark.slow
    def test_fsdp2_in_bf16(self, data, tmp_path):
        """As the configuration has it."""
        one = Run("finetune", data, tmp_path / "one", learning_rate=1e-4).alone()
        two = Run("finetune", data, tmp_path / "two", learning_rate=1e-4).finish("fsdp2", precision="bf16")
        assert_same_curve(two, one, tolerance=0.1)
        assert {tensor.dtype for tensor in two.weights().values()} == {torch.float32}

    @pytest.mark.slow
    @pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
    def test_zero3(self, data, tmp_path, recipe):
        pytest.importorskip("deepspeed")
        one = Run(recipe, data, tmp_path / "one").alone()
        two = Run(recipe, data, tmp_path / "two", save_steps=11).finish("zero3")
        assert_same_curve(two, one)
        if recipe == "finetune":
            model = MQTLlavaForConditionalGeneration.from_pretrained(two.folder)
            assert_close_weights(model.state_dict(), {**model.state_dict(), **one.weights()})
        else:
            assert_close_weights(two.weights(), one.weights())
        resumed = Run(recipe, data, tmp_path / "resumed", save_steps=11)
        shutil.copytree(two.folder / "checkpoint-11", resumed.folder / "checkpoint-11")
        assert_same_curve(resumed.finish("zero3"), two, tolerance=1e-6)


class TestKill:
    """Whenever a run is killed, the next call of the same command ends as if nothing had been."""

    RANDOM = {
        "budget": "UniformBudget(1, 16)",
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "save_steps": 3,
    }

    @pytest.mark.parametrize(
        "recipe, settings",
        [
            ("finetune", {}),
            pytest.param("finetune", {"lora_rank": 4}, marks=pytest.mark.slow),  # with dropout
            pytest.param("pretrain", {"save_total_limit": 1}, marks=pytest.mark.slow),
            pytest.param("finetune_from_llava", LLAVA | {"lora_rank": 4}, marks=pytest.mark.slow),
        ],
        ids=["finetune", "lora", "pretrain", "llava"],
    )
    def test_at_a_random_moment(self, data, tmp_path, recipe, settings):
        if "lora_rank" in settings:
            pytest.importorskip("peft")
        settings = self.RANDOM | settings
        whole = Run(recipe, data, tmp_path / "whole", **settings).alone()
        killed = Run(recipe, data, tmp_path / "killed", **settings)
        process = killed.start()
        killed.kill(process, complete_checkpoint(killed.folder, 3), delay=random.uniform(0, 0.3))
        assert_identical(killed.alone(), whole)

    @pytest.mark.slow
    def test_while_a_checkpoint_is_written(self, data, tmp_path):
        """In the second epoch."""
        whole = Run("finetune", data, tmp_path / "whole", **self.RANDOM).alone()
        killed = Run("finetune", data, tmp_path / "killed", **self.RANDOM)
        moment = unfinished_checkpoint(killed.folder, 12)
        killed.kill(killed.start(), moment)
        assert moment() and complete_checkpoint(killed.folder, 9)()
        assert_identical(killed.alone(), whole)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
    def test_two_processes(self, data, tmp_path, kind):
        """In the second epoch; each process draws an m of its own."""
        whole = Run("pretrain" if kind == "fsdp2" else "finetune", data, tmp_path / "whole", **self.RANDOM)
        whole.finish(kind)
        bands = [{name for name in losses if name.startswith("loss_m")} for losses in whole.losses()]
        assert any(len(names) == 2 for names in bands) and all(len(names) <= 2 for names in bands)

        killed = Run(whole.recipe, data, tmp_path / "killed", **self.RANDOM)
        process = killed.start(kind)
        killed.kill(process, complete_checkpoint(killed.folder, 9))
        shutil.copytree(killed.folder / "checkpoint-9", killed.folder / "checkpoint-15", dirs_exist_ok=True)
        (killed.folder / "checkpoint-15" / "trainer_state.json").write_text("")
        assert_identical(killed.finish(kind), whole)


CONFIGURATIONS = {
    "single_gpu": ("NO", 1),
    "ddp": ("MULTI_GPU", 8),
    "fsdp2": ("FSDP", 8),
    "zero3": ("DEEPSPEED", 8),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_knows_the_configurations(name):
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes) == CONFIGURATIONS[name]
    assert config.mixed_precision == "bf16" and config.num_machines == 1 and not config.use_cpu
    if name == "fsdp2":
        settings = config.fsdp_config
        assert settings["fsdp_version"] == 2 and settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"
        model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT)
        classes = {type(module).__name__ for module in model.modules()}
        assert set(settings["fsdp_transformer_layer_cls_to_wrap"].split(",")) <= classes
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3 and config.deepspeed_config["zero3_save_16bit_model"]


def test_every_configuration_is_tested():
    assert {path.stem for path in (RECIPES / "accelerate").iterdir()} == set(CONFIGURATIONS)
