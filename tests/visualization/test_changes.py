"""What more visual tokens change."""

import pytest
import torch

from mqt_llava.visualization import largest_changes, probabilities_by_num_visual_tokens


def test_probabilities_are_those_of_each_budget(answer):
    probabilities = probabilities_by_num_visual_tokens(answer, [1, 4, 16])
    assert probabilities.shape == (3, 3) and not probabilities.requires_grad
    for row, m in zip(probabilities, (1, 4, 16)):
        expected = answer.log_probabilities(answer.visual_tokens(answer.patches, 16)[:, :m]).exp()[0]
        torch.testing.assert_close(row, expected)
    assert (probabilities[0] - probabilities[2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="1..16"):
        probabilities_by_num_visual_tokens(answer, [1, 17])


def test_the_largest_changes_come_first():
    probabilities = torch.tensor([[0.1, 0.5, 0.9, 0.2], [0.2, 0.5, 0.1, 0.5], [0.2, 0.9, 0.1, 0.6]])
    assert largest_changes(probabilities, 2) == [[2, 3], [1, 3]]
    assert [len(step) for step in largest_changes(probabilities, 9)] == [4, 4]
    with pytest.raises(ValueError, match="at least 2"):
        largest_changes(probabilities[:1], 2)
