"""
A stack of equal transformer blocks, as vision towers and decoders have them: what it computes and what it weighs.

The convention of all FLOPs here: a multiplication with an addition counts as two, in matrix products, convolutions and
attention alone, as `torch.utils.flop_counter.FlopCounterMode` counts. Attention is counted in full, every query with
every key it is given, not halved where a causal mask hides the later ones.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blocks:
    """
    Blocks of self-attention and MLP; widths are numbers of channels.

    Args:
        query_width: Of all heads together, and likewise of the attention's output.
        kv_width: Of the keys of all heads together, and likewise of the values; fewer with grouped queries.
        mlp_matrices: 2, or 3 where the MLP is gated.
        vector_weights: Weights of a block that are in no matrix: biases, norms and scales.
    """

    num_layers: int
    hidden_size: int
    query_width: int
    kv_width: int
    mlp_width: int
    mlp_matrices: int
    vector_weights: int

    @property
    def matrix_weights(self) -> int:
        """Of one block."""
        attention = 2 * self.hidden_size * (self.query_width + self.kv_width)
        return attention + self.mlp_matrices * self.hidden_size * self.mlp_width

    @property
    def num_weights(self) -> int:
        """Of all blocks."""
        return self.num_layers * (self.matrix_weights + self.vector_weights)

    def flops(self, tokens: int, pairs: int) -> int:
        """
        Args:
            tokens: How many tokens go through all blocks.
            pairs: Pairs of a query and a key, summed over the blocks. Each costs one product of `query_width` numbers
                for the score and one for the value.
        """
        return 2 * tokens * self.num_layers * self.matrix_weights + 4 * pairs * self.query_width
