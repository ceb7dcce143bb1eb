/* Running softmaxes and packed centroids: what every level shares. */
#include "kernels/cpu/ops.h"

#include <math.h>
#include <string.h>

void hri_partial_clear(struct hri_partial *part, uint32_t g, uint32_t dv)
{
    for (uint32_t i = 0; i < g; i++) {
        part->m[i] = -INFINITY;
        part->l[i] = 0.0f;
    }
    memset(part->o, 0, (size_t)g * dv * sizeof *part->o);
}

/* Adds a softmax (m, l, o * o_factor) to entry i of into. */
static void merge_one(struct hri_partial *into, uint32_t i, uint32_t dv, float m, float l,
                      const float *o)
{
    if (!(m > -INFINITY) || l == 0.0f) /* no weight at all, wherever its top is */
        return;
    float *dst = into->o + (size_t)i * dv;
    const bool had_some = into->m[i] > -INFINITY;
    const float largest = had_some && into->m[i] > m ? into->m[i] : m;
    const float keep = had_some ? expf(into->m[i] - largest) : 0.0f;
    const float add = expf(m - largest);

    into->m[i] = largest;
    into->l[i] = into->l[i] * keep + l * add;
    for (uint32_t j = 0; j < dv; j++)
        dst[j] = dst[j] * keep + o[j] * add;
}

void hri_partial_merge(struct hri_partial *into, const struct hri_partial *from, uint32_t g,
                       uint32_t dv)
{
    for (uint32_t i = 0; i < g; i++)
        merge_one(into, i, dv, from->m[i], from->l[i], from->o + (size_t)i * dv);
}

void hri_partial_add(struct hri_partial *part, uint32_t g, uint32_t dv, const float *log_weight,
                     const float *o_mean)
{
    for (uint32_t i = 0; i < g; i++)
        merge_one(part, i, dv, log_weight[i], 1.0f, o_mean + (size_t)i * dv);
}

void hri_partial_finish(const struct hri_partial *part, uint32_t g, uint32_t dv, float *out,
                        float *lse)
{
    for (uint32_t i = 0; i < g; i++) {
        const float *o = part->o + (size_t)i * dv;
        const float l = part->l[i];
        const float inverse = l > 0.0f ? 1.0f / l : 0.0f;

        for (uint32_t j = 0; j < dv; j++)
            out[(size_t)i * dv + j] = o[j] * inverse;
        if (lse)
            lse[i] = l > 0.0f ? part->m[i] + logf(l) : -INFINITY;
    }
}

static uint8_t *centroid_lane(uint8_t *codes, uint32_t dk, uint32_t b)
{
    return codes + (size_t)(b / 16) * dk * 16 + (b % 16) * 4;
}

float hri_centroid_pack(uint8_t *codes, uint32_t dk, uint32_t b, const float *centroid)
{
    uint8_t *lane = centroid_lane(codes, dk, b);
    float largest = 0.0f;

    for (uint32_t j = 0; j < dk; j++)
        largest = fmaxf(largest, fabsf(centroid[j]));
    const float step = largest < HRI_STEP_MIN ? 0.0f : largest / 127.0f;
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (uint32_t j = 0; j < dk; j++) {
        float code = fminf(fmaxf(rintf(centroid[j] * inverse), -127.0f), 127.0f);
        lane[(size_t)(j / 4) * 64 + j % 4] = (uint8_t)((int)code + 128);
    }
    return step;
}

void hri_centroid_move(uint8_t *to, uint32_t b, const uint8_t *from, uint32_t from_b, uint32_t dk)
{
    uint8_t *lane = centroid_lane(to, dk, b);
    const uint8_t *old = from + (size_t)(from_b / 16) * dk * 16 + (size_t)(from_b % 16) * 4;

    for (uint32_t j = 0; j < dk / 4; j++)
        memcpy(lane + (size_t)j * 64, old + (size_t)j * 64, 4);
}

void hri_centroid_unpack(const uint8_t *codes, uint32_t dk, uint32_t b, float step,
                         float *centroid_out)
{
    const uint8_t *lane = codes + (size_t)(b / 16) * dk * 16 + (b % 16) * 4;

    for (uint32_t j = 0; j < dk; j++)
        centroid_out[j] = (float)((int)lane[(size_t)(j / 4) * 64 + j % 4] - 128) * step;
}

size_t hri_centroids_bytes(uint32_t n, uint32_t dk)
{
    return (((size_t)n + 15) / 16) * 16 * dk;
}

static size_t line_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* What attend_tile lays out: K panels, V panels, the queries and the logits of one block of
 * queries. */
size_t hri_tile_scratch_bytes(uint32_t nq, uint32_t dk, uint32_t dv, uint32_t n)
{
    const size_t rows = n < HRI_TILE_ROWS ? n : HRI_TILE_ROWS;
    const size_t panel_rows = (rows + HRI_TILE_PANEL - 1) / HRI_TILE_PANEL * HRI_TILE_PANEL;
    const size_t v_width = ((size_t)dv + HRI_TILE_PANEL - 1) / HRI_TILE_PANEL * HRI_TILE_PANEL;

    (void)nq;
    return line_up(panel_rows * dk * sizeof(float)) + line_up(rows * v_width * sizeof(float)) +
           line_up((size_t)HRI_TILE_QUERIES * HRI_TILE_QUERY_STRIDE * sizeof(float)) +
           line_up((size_t)HRI_TILE_QUERIES * HRI_TILE_LOGIT_STRIDE * sizeof(float));
}
