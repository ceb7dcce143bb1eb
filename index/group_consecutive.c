#include "index/group.h"

uint32_t hri_group_consecutive(uint32_t n, uint32_t target, uint32_t *order, uint32_t *block_rows)
{
    uint32_t n_blocks = hri_group_blocks_max(n, target);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t b = 0; b < n_blocks; b++)
        block_rows[b] = b + 1 < n_blocks ? target : n - b * target;
    return n_blocks;
}
