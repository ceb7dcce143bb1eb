/* Programs beside this one: fio, a peer, the tool itself. */
#ifndef BENCH_PROCESS_H
#define BENCH_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hrb_process {
    int code; /* exit code, 128 + N after signal N */
    uint64_t peak_rss_bytes;
    double seconds;
    char *output;      /* standard output, terminated; the caller frees it */
    char message[256]; /* last line of standard error */
};
/* argv[0] is searched in PATH; NULL ends argv. False when it could not be started. */
bool hrb_process_run(const char *const *argv, struct hrb_process *process_out);
/* Whether PATH has an executable of this name. */
bool hrb_program_exists(const char *name);
/* Where a script of bench/peers lies: HEADRACE_PEERS names another folder. */
void hrb_peer_script(const char *name, char *path, size_t path_bytes);
/* False with the reason when its "check" says that the peer is not installed. */
bool hrb_peer_is_there(const char *name, char *why, size_t why_bytes);

#endif
