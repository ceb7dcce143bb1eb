/* Tiles of AMX: eight registers of up to 16 rows of 64 bytes, and products of them. Include after
 * simd_avx512.h.
 *
 * TILE_DP*(c, a, b): c[m][n] += sum over k of a[m][k] b[k][n]. In memory, a row of a is its k side
 * by side; a row of b holds, for each of 16 columns n, the 32 bits of consecutive k: 4 bytes or 2
 * bfloat16. A product takes as long as a has rows, so the operand with few rows (queries, weights)
 * is a where the layout of the other allows it.
 *
 * The state belongs to the thread: a kernel calls tiles_begin with the shapes it needs and
 * tiles_end before it returns, so that nothing is left for the system to save. The instructions are
 * spelled out because gcc 12's intrinsics do not tell the compiler that they read memory. */
#ifndef HRI_SIMD_AMX_H
#define HRI_SIMD_AMX_H

#define TILE_BYTES_ROW 64
#define TILE_BYTES_ALL 1024

#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_LOAD(t, from, stride)                                                                 \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"((size_t)(stride))            \
                     : "memor"                                                                     \
                       "y")
#define TILE_STORE(to, stride, t)                                                                  \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((size_t)(stride))          \
                     : "memory")
#define TILE_DP_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define TILE_DP_SS(c, a, b)   __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define TILE_DP_SU(c, a, b)   __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

/* The operand of ldtilecfg. */
struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

HRI_INLINE void tile_shape(struct tile_shapes *shapes, int tile, uint32_t rows, uint32_t row_bytes)
{
    shapes->rows[tile] = (uint8_t)rows;
    shapes->row_bytes[tile] = (uint16_t)row_bytes;
}

HRI_INLINE void tiles_begin(struct tile_shapes *shapes)
{
    shapes->palette = 1;
    __asm__ volatile("ldtilecfg %0" ::"m"(*shapes));
}

HRI_INLINE void tiles_end(void)
{
    __asm__ volatile("tilerelease" ::);
}

#endif
