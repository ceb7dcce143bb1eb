/* Parameters that many selectors have in common. A selector's file defines its list of parameters and its
 * struct hri_selector, and index/selectors.c lists it. */
#ifndef HRI_INDEX_PARAMS_H
#define HRI_INDEX_PARAMS_H

#include "index/selector_ops.h"

#define PARAM_SINK(count)                                                                          \
    {                                                                                              \
        "sink", "first tokens that stay on the device", "StreamingLLM, arXiv 2309.17453", count,   \
            0, 4096                                                                                \
    }
#define PARAM_WINDOW(count)                                                                        \
    {                                                                                              \
        "window", "newest tokens that stay on the device", "StreamingLLM, arXiv 2309.17453",       \
            count, 1, 65536                                                                        \
    }
#define PARAM_SEGMENT(count)                                                                       \
    {                                                                                              \
        "segment", "tokens grouped into blocks together while prefilling",                         \
            "RetroInfer, arXiv 2505.02922", count, 32, 65536                                       \
    }
#define PARAM_DECODE_SEGMENT(count)                                                                \
    {                                                                                              \
        "decode_segment", "tokens grouped into blocks together while decoding",                    \
            "RetroInfer, arXiv 2505.02922", count, 16, 8192                                        \
    }
#define PARAM_DENSE(source)                                                                        \
    {                                                                                              \
        "dense", "first layers that are attended densely", source, 0, 0, 1024                      \
    }
#define PARAM_END                                                                                  \
    {                                                                                              \
        NULL, NULL, NULL, 0, 0, 0                                                                  \
    }

#endif
