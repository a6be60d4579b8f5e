"""All cells of an image, read off the first of its visual tokens."""

import pytest
import torch

from mqt_llava.training.nested_readers import NestedReaders


IMAGES, M, WIDTH = 5, 6, 3


def test_each_token_says_what_lies_a_multiple_further():
    readers = NestedReaders(M, WIDTH, levels=(2, 4))
    assert list(readers.maps) == ["2", "4"]  # 4 serves both levels
    tokens, cells = torch.randn(2, IMAGES, M, WIDTH)
    ours, theirs = tokens - tokens.mean(0), cells - cells.mean(0)
    expected = []
    for m in (2, 4):
        errors = [
            (ours[image, cell % m] @ readers.maps[str(cell - cell % m)] - theirs[image, cell]).square().mean()
            for image in range(IMAGES)
            for cell in range(m, M)
        ]
        expected.append(torch.stack(errors).mean())
    torch.testing.assert_close(readers(tokens, cells), torch.stack(expected).mean())


def test_later_tokens_help_nobody():
    readers = NestedReaders(M, WIDTH, levels=(2,))
    tokens = torch.randn(IMAGES, M, WIDTH, requires_grad=True)
    readers(tokens, torch.randn(IMAGES, M, WIDTH)).backward()
    assert tokens.grad[:, :2].any() and not tokens.grad[:, 2:].any()


def test_what_is_the_same_in_all_images_need_not_be_said():
    readers = NestedReaders(M, WIDTH, levels=(1, 3))
    tokens, cells, same = torch.randn(3, IMAGES, M, WIDTH)
    torch.testing.assert_close(readers(tokens, cells), readers(tokens + same[:1], cells - same[:1]))
    assert readers(tokens[:1], cells[:1]) == 0


@pytest.mark.parametrize("level, message", [(0, "`levels` is 0"), (M, f"`levels` holds {M}, .* below all {M}")])
def test_levels_lie_below_all_tokens(level, message):
    with pytest.raises(ValueError, match=message):
        NestedReaders(M, WIDTH, levels=(2, level))
    with pytest.raises(TypeError, match="`levels` is 2.0, but must be an integer"):
        NestedReaders(M, WIDTH, levels=(2.0,))
    with pytest.raises(TypeError, match="`levels` is 4, but must be a list"):
        NestedReaders(M, WIDTH, levels=4)
