"""
Runs a recipe in CPU processes with accelerate's FSDP or DeepSpeed, as `accelerate launch` would on GPUs.

    ACCELERATE_TORCH_DEVICE=cpu accelerate launch --config_file examples/train/accelerate/fsdp2.yaml \
        --num_processes 2 --mixed_precision no tests/training/launch_on_cpu.py examples/train/finetune.py ...

Both know how to, over gloo; but accelerate turns them on for processes on an accelerator alone.
"""

import runpy
import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
torch.distributed.destroy_process_group()
