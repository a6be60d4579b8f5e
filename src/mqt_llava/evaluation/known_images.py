"""
Whether an image is like those that a checkpoint was trained on.

Along most directions the features of patches vary freely, whatever an image shows. Along some they hardly vary while
the images are of the kind that the model knows, and do vary for others. The distance of an image is a Mahalanobis
distance along these alone:

    distance^2 = mean over patches p and directions k of (w_k . x_p - b_k)^2,
    w_k = e_k / sqrt(l_k),   b_k = w_k . mean over known images

with e_k and l_k the eigenvectors and the smallest eigenvalues of the covariance of known images' patch features x. It
is 1 for a typical known image. (Lee et al. 2018, arXiv 1807.03888; of the directions of least variance alone, Kamoi
and Kobayashi 2020, arXiv 2003.00402.)
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils import cached_file

from ..files.atomic_file import write_atomically
from ..models.adaptive_budget import checkpoint_digest
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration


FILE_NAME = "known_images.json"  # beside the checkpoint
NUM_DIRECTIONS = 16
DIGITS = 4  # of the numbers in the file
BATCH_SIZE = 64


@torch.no_grad()
def patch_features(
    model: MQTLlavaForConditionalGeneration, image_processor: Any, images: Iterable[Image.Image]
) -> torch.Tensor:
    """What the query transformer compresses of each image, `(images, patches, width)`, float64 on the CPU."""
    images, features = list(images), []
    for start in range(0, len(images), BATCH_SIZE):
        pixel_values = image_processor(images[start : start + BATCH_SIZE], return_tensors="pt")["pixel_values"]
        features.append(model.model.encode_patches(pixel_values.to(model.device))[1][0].cpu().double())
    return torch.cat(features)


@dataclass
class KnownImages:
    """
    The images that a checkpoint was trained on, as a few directions along which their features hardly vary.

    Args:
        description: What they are, in the plural, such as "mosaics of 4 x 4 photos of clothes".
        checkpoint: A digest of the weights, by `checkpoint_digest`.
        threshold: The largest distance of an image that counts as known.
        directions: w, `(directions, width)`.
        offsets: b, `(directions,)`.
    """

    description: str
    checkpoint: str
    threshold: float
    directions: list[list[float]]
    offsets: list[float]

    @classmethod
    def fit(
        cls,
        model: MQTLlavaForConditionalGeneration,
        image_processor: Any,
        images: Iterable[Image.Image],
        others: Iterable[Image.Image],
        description: str,
        share: float,
    ) -> "KnownImages":
        """
        Args:
            images: Known images, from which the directions are found.
            others: Further known images, from which the threshold is found.
            share: Of these the share that counts as unknown, in 0..1.
        """
        patches = patch_features(model, image_processor, images).flatten(0, 1)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # ascending
        directions = vectors[:, :NUM_DIRECTIONS] / values[:NUM_DIRECTIONS].sqrt()
        known = cls(
            description,
            checkpoint_digest(model),
            0.0,
            [[round(number, DIGITS) for number in direction] for direction in directions.T.tolist()],
            [round(number, DIGITS) for number in (patches.mean(0) @ directions).tolist()],
        )
        distances = known.distances(model, image_processor, others)
        known.threshold = round(float(distances.quantile(1 - share)), DIGITS)
        return known

    def distances(
        self, model: MQTLlavaForConditionalGeneration, image_processor: Any, images: Iterable[Image.Image]
    ) -> torch.Tensor:
        """Of each image, `(images,)`; above `threshold` it is unlike those that the checkpoint knows."""
        directions = torch.tensor(self.directions, dtype=torch.float64)
        offsets = torch.tensor(self.offsets, dtype=torch.float64)
        patches = patch_features(model, image_processor, images)
        return (patches @ directions.T - offsets).square().mean((1, 2)).sqrt()

    def save(self, folder: Path) -> None:
        """Writes the file beside the checkpoint."""
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(self).items()]
        write_atomically(folder / FILE_NAME, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, checkpoint: str, model: MQTLlavaForConditionalGeneration) -> "KnownImages | None":
        """
        Args:
            checkpoint: Folder or Hub id.
            model: Opened from there.

        Returns:
            `None` where the checkpoint has no such file.

        Raises:
            ValueError: The file was made for other weights.
        """
        try:
            path = cached_file(checkpoint, FILE_NAME)
        except OSError:  # there is none
            path = None
        if path is None:
            return None
        known = cls(**json.loads(Path(path).read_text()))
        if known.checkpoint != checkpoint_digest(model):
            raise ValueError(f"{path} was made for other weights (digest {known.checkpoint}). Make it again.")
        return known
