# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""The models. Their files travel with checkpoints: they import each other, torch, transformers and Pillow alone."""
