/*
 * Rows of quantised weights in the order in which a vector of rows reads them: sixteen rows to a group, a row per lane. Block i of all
 * sixteen takes sixteen blocks' bytes: their scales, their minima where the type has them, then bytes 0 to 3 of each row's quants, bytes 4
 * to 7, and so on. A group is as long as its rows.
 */
#ifndef HRE_REPACK_H
#define HRE_REPACK_H

#include "engine/linear.h"

#define HRE_GROUP_ROWS 16

/* Whether rows of the type can be repacked: Q4_0, Q4_1, Q8_0. */
int hre_can_repack(uint32_t type);

/* HRE_GROUP_ROWS rows of row_bytes become a group. */
void hre_repack_group(uint32_t type, const void *rows, size_t row_bytes, void *group);

/* Row r of w as the file has it: in place, or put together in scratch, of w->row_bytes. */
const void *hre_weight_row(const struct hre_weight *w, uint32_t r, void *scratch);

#endif
