import re
from pathlib import Path

from setuptools import find_packages, setup


def index_page(readme: str) -> str:
    """The README for the package index, which has no other file of the repository to show or to link to."""
    without_pictures = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", readme)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", without_pictures)


setup(
    name="mqt_llava",
    version="0.1.0",  # the one place; CITATION.cff repeats it, and a test compares them
    description="MQT-LLaVA for transformers: any number of visual tokens per image",
    long_description=index_page(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author="The mqt_llava authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "vision-language model",
        "LLaVA",
        "MQT-LLaVA",
        "QueCC",
        "Matryoshka",
        "visual tokens",
        "transformers",
        "vLLM",
    ],  # fmt: skip
    project_urls={
        "MQT-LLaVA paper": "https://arxiv.org/abs/2405.19315",
        "QueCC paper": "https://arxiv.org/abs/2411.03312",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "mqt_llava": ["py.typed", "mqt-llava-tiny/*"],
        "mqt_llava.evaluation": ["published.json", "tasks/*/*"],
    },
    install_requires=[
        "torch>=2.7",  # transformers 5.19 cannot be imported beside 2.6 where there is no accelerator
        "transformers>=5.19,<5.24",  # 5.24 renames `past_key_values`, and what LLaVA returns
        "safetensors",
        "accelerate",
        "huggingface_hub",
        "sentencepiece",
        "protobuf",  # to read tokenizer.model
        "pillow",
    ],
    entry_points={
        "lmms_eval.models": ["mqt_llava = mqt_llava.evaluation.plugin:manifest"],
        "vllm.general_plugins": ["mqt_llava = mqt_llava.serving:register"],
    },
    extras_require={
        "train": ["datasets", "peft", "trl"],
        "serve": ["vllm>=0.32"],
        "eval": ["lmms-eval>=0.7.3", "matplotlib", "filelock<4"],  # which lmms-eval 0.7.3 reaches into
        "demo": ["gradio"],
        "visual": ["matplotlib", "captum"],
        "plan": ["scipy"],
        "quantize": ["bitsandbytes"],
        "dev": [
            "transformers[serving]",
            "pytest",
            "pytest-xdist",
            "pytest-timeout",
            "ruff",
            "pre-commit",
            "mypy",
            "coverage",  # of the mutation run
            "peft",
            "trl",
            "datasets",
            "bitsandbytes",
            "matplotlib",
            "captum",
            "scipy",
        ],
    },
)
