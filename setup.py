from setuptools import find_packages, setup


setup(
    name="mqt_llava",
    version="0.1.0",
    description="MQT-LLaVA for transformers: any number of visual tokens per image",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "mqt_llava": ["mqt-llava-tiny/*"],
        "mqt_llava.evaluation": ["published.json", "tasks/*/*"],
    },
    install_requires=[
        "torch>=2.7",  # transformers 5.19 cannot be imported beside 2.6 where there is no accelerator
        "transformers>=5.19,<6",
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
