"""
Which cell of the image each query starts out to stand for. The first m queries are all that m visual tokens show, so
their order decides what is left at few.
"""

import torch


def raster_cells(num_queries: int) -> list[tuple[int, int, int]]:
    """The order of the paper's position table: a square of equal cells, row by row. One token shows the top left."""
    side = round(num_queries**0.5)
    return [(side, row, column) for row in range(side) for column in range(side)]


def coarse_to_fine_cells(num_queries: int) -> list[tuple[int, int, int]]:
    """
    The whole image first, then three quarters of every cell that came before, level by level: 1 + 3 + 12 + 48 + ...

    A fourth quarter is what the other three leave of their cell, so it needs no token. Within a level, each cell gets
    its first quarter before any gets its second, and neighbours are far apart: wherever m ends, the tokens are spread
    over the image. 1, 4, 16, 64 and 256 tokens end with a level.
    """
    cells = parents = [(1, 0, 0)]
    while len(cells) < num_queries:
        quarters = [
            [(2 * side, 2 * row + lower, 2 * column + right) for side, row, column in parents]
            for lower, right in ((0, 0), (1, 1), (0, 1), (1, 0))
        ]
        cells = [*cells, *sum(quarters[:3], [])]
        parents = sum(quarters, [])
    return cells[:num_queries]


ORDERS = {"raster": raster_cells, "coarse_to_fine": coarse_to_fine_cells}


def pooling_weights(order: str, num_queries: int, grid: int) -> torch.Tensor:
    """
    How a grid of patches is averaged to one token for each query.

    Args:
        order: A name in `ORDERS`, each a list of cells `(side, row, column)` of the image cut into side x side.
        num_queries: M.
        grid: Patches along one side. A cell takes of each patch the share that lies within it, so that four quarters
            have the mean of their cell on any grid.

    Returns:
        Float32 `(num_queries, grid * grid)`, whose rows sum to 1.

    Raises:
        ValueError: There is no such order.
    """
    if order not in ORDERS:
        raise ValueError(f"`order` is {order!r}, but must be one of {', '.join(ORDERS)}.")

    def shares(side: int, index: int) -> torch.Tensor:
        first, last = index * grid / side, (index + 1) * grid / side
        places = torch.arange(grid, dtype=torch.float64)
        return ((places + 1).clamp(max=last) - places.clamp(min=first)).clamp(min=0)

    cells = ORDERS[order](num_queries)
    masks = torch.stack([torch.outer(shares(side, row), shares(side, column)) for side, row, column in cells])
    return (masks.flatten(1) / masks.sum((1, 2))[:, None]).float()
