#include "bench/fio.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "bench/process.h"

static double bandwidth_of(const char *output, bool writes)
{
    cJSON *json = cJSON_Parse(output ? output : "");
    const cJSON *job = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "jobs"), 0);
    const cJSON *rate =
        cJSON_GetObjectItem(cJSON_GetObjectItem(job, writes ? "write" : "read"), "bw_bytes");
    double bandwidth = cJSON_IsNumber(rate) ? rate->valuedouble : 0;
    cJSON_Delete(json);
    return bandwidth;
}

int hrb_fio_run(const struct hrb_fio_job *job, double *bandwidth_out, char *reason,
                size_t reason_bytes)
{
    char name[560], size[64], block[64], depth[32], rw[64];
    struct hrb_process p;
    snprintf(name, sizeof name, "--filename=%s", job->path);
    snprintf(rw, sizeof rw, "--rw=%s", job->rw);
    snprintf(size, sizeof size, "--size=%llu", (unsigned long long)job->bytes);
    snprintf(block, sizeof block, "--bs=%llu", (unsigned long long)job->block_bytes);
    snprintf(depth, sizeof depth, "--iodepth=%u", job->depth);
    const char *argv[] = {"fio", "--name=headrace", name, size, block, depth, rw,
                          /* repeating data goes faster on some disks */
                          job->same_data ? "--refill_buffers=0" : "--refill_buffers=1",
                          "--ioengine=io_uring", "--registerfiles=1", "--randrepeat=0",
                          "--norandommap=1", "--output-format=json",
                          job->direct ? "--direct=1" : "--direct=0",
                          job->direct ? "--fixedbufs=1" : "--fixedbufs=0", job->more, NULL};
    bool started = hrb_process_run(argv, &p);
    *bandwidth_out = started ? bandwidth_of(p.output, strstr(job->rw, "write") != NULL) : 0;
    if (!started || p.code)
        snprintf(reason, reason_bytes, "fio failed: %s", p.message);
    free(p.output);
    return !started || p.code != 0;
}
