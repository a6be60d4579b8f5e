"""Requests at random: any m, one for each image, several images and turns, images that come again."""

import random

from tests.serving.serving_cases import MOSAICS, QUESTIONS, Case


def random_cases(number: int, seed: int) -> list[Case]:
    rng = random.Random(seed)
    return [random_case(rng) for _ in range(number)]


def random_case(rng: random.Random) -> Case:
    prompt, images = "", []
    for turn in range(rng.choice((1, 1, 2, 3))):
        shown = rng.choices(MOSAICS, k=rng.choice((1, 1, 1, 2, 3)) if turn == 0 else rng.choice((0, 0, 1)))
        images += shown
        answer = f" {rng.choice(('yes', 'coat, bag', 'There are two.'))}</s>" if turn else ""
        prompt += f"{answer}USER: {'<image>' * len(shown)}\n{rng.choice(QUESTIONS)} ASSISTANT:"
    numbers = tuple(rng.randint(1, 16) for _ in images)
    return Case(prompt, tuple(images), rng.choice((None, numbers[0], numbers)))
