/* A small disk in memory below the table of I/O operations, with one level of folders, that loses power.
 *
 * What was written is on the disk once its file was synced; names, once their folder was. At the cut, of the writes of a file since its
 * last sync any may be there or not, in any order, torn between sectors of 512 bytes or 4 KiB; of the changes of names in a folder since its
 * last sync a beginning is there, since file systems keep those in a journal. That a name is on the disk says nothing of what it names.
 *
 * Deterministic: everything follows from the seed and the order of the calls. One thread. */
#ifndef HR_TESTS_SIM_DISK_H
#define HR_TESTS_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "offload/io_ops.h"

#define SIM_FILES   256
#define SIM_FOLDERS 8
#define SIM_NAMES   8
#define SIM_CHANGES 256
#define SIM_FDS     64

struct sim_write {
    struct sim_write *next; /* newest first */
    uint64_t offset, bytes;
    unsigned char data[];
};
struct sim_file {
    unsigned char *live, *stable;
    uint64_t bytes, capacity, stable_bytes;
    struct sim_write *unsynced;
    bool direct; /* transfers are whole pages in aligned memory, or the rig stops */
};
struct sim_name {
    char name[24]; /* "": free */
    uint32_t file;
};
struct sim_change { /* of names; file SIM_FILES: removed */
    char name[24], from[24];
    uint32_t file;
};
struct sim_folder {
    char path[64]; /* "": free */
    bool stable;   /* its own name is on the disk */
    struct sim_name live[SIM_NAMES], kept[SIM_NAMES];
    struct sim_change changes[SIM_CHANGES];
    uint32_t n_changes;
};

enum sim_fault {
    SIM_RIGHT,
    SIM_SHORT, /* of a transfer: half of it */
    SIM_EINTR,
    SIM_EAGAIN,
    SIM_EIO,
    SIM_ENOSPC,
    SIM_EDQUOT,
    SIM_FAULTS
};

struct sim_disk {
    struct hri_io_ops ops;
    struct hri_rng rng;
    struct sim_file files[SIM_FILES];
    uint32_t n_files;
    struct sim_folder folders[SIM_FOLDERS];
    struct {
        int kind; /* 0: free, 1: file, 2: folder, 3: lock */
        uint32_t index;
    } fds[SIM_FDS];
    uint64_t n_calls;  /* that change something */
    uint64_t cut_at;   /* this call is the last, and it may be done in part; 0: never */
    bool off;          /* every call is -EIO */
    uint64_t fault_at; /* from this call on, ... */
    uint64_t fault_count;
    enum sim_fault fault; /* ... so many calls end like that */
    uint64_t n_faults;
};

void sim_init(struct sim_disk *disk, uint64_t seed);
/* Rings and direct files, too. Whenever a ring is entered some of what was pushed is done, in any order, and the results come in another. */
void sim_add_rings(struct sim_disk *disk);
void sim_fini(struct sim_disk *disk);
/* Power is lost and comes back: what is on the disk is all there is. Open descriptors are gone. */
void sim_power_cut(struct sim_disk *disk);
/* The bytes of a file by folder and name; NULL: there is none. */
unsigned char *sim_bytes(struct sim_disk *disk, const char *folder, const char *name,
                         uint64_t *bytes_out);

#endif
