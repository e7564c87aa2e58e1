#include "totals.h"

#include "mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file of another layout. */
struct past {
    char path[4096];
    int fd;
    struct shared_head *head;
    size_t bytes;
};

/* Does all that the head tells of lie within the file? */
static bool is_sound(const struct shared_head *h, size_t bytes)
{
    uint64_t slots_end = h->slots_at + (uint64_t)h->slots * h->slot_bytes;
    return atomic_load(&h->magic) == SHARED_MAGIC && h->bytes == bytes && slots_end <= bytes &&
           h->slots_used <= h->slots && h->counters_at + 8ULL * h->counters <= h->slot_bytes &&
           h->base_at + 16ULL * h->counters <= bytes && (uint64_t)h->legend_at + h->legend_bytes <= bytes &&
           (h->slots_at | h->counters_at | h->base_at | h->slot_bytes) % 8 == 0;
}

static bool past_open(struct past *p, const char *run_dir, const char *name)
{
    struct stat st;
    p->head = MAP_FAILED;
    if (snprintf(p->path, sizeof p->path, "%s/%s", run_dir, name) >= (int)sizeof p->path) return false;
    p->fd = open(p->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (p->fd < 0) return false;
    if (fstat(p->fd, &st) == 0 && st.st_size >= (off_t)sizeof *p->head) {
        p->bytes = (size_t)st.st_size;
        p->head = mmap(NULL, p->bytes, PROT_READ, MAP_SHARED, p->fd, 0);
    }
    if (p->head != MAP_FAILED && is_sound(p->head, p->bytes)) return true;
    if (p->head != MAP_FAILED) munmap(p->head, p->bytes);
    close(p->fd);
    return false;
}

static void past_close(struct past *p)
{
    munmap(p->head, p->bytes);
    close(p->fd);
}

/* Adds up a file in its own order. */
static void sum_file(const struct shared_head *h, uint64_t folded, uint64_t *sums)
{
    const char *file = (const char *)h;
    const _Atomic uint64_t *base =
        (const _Atomic uint64_t *)(const void *)(file + h->base_at) + (folded & 1) * h->counters;
    for (size_t c = 0; c < h->counters; c++) sums[c] += atomic_load_explicit(&base[c], memory_order_relaxed);
    for (size_t s = 0; s < atomic_load(&h->slots_used); s++) {
        const char *slot = file + h->slots_at + s * h->slot_bytes;
        const _Atomic uint64_t *counter = (const _Atomic uint64_t *)(const void *)(slot + h->counters_at);
        for (size_t c = 0; c < h->counters; c++) sums[c] += atomic_load_explicit(&counter[c], memory_order_relaxed);
    }
}

static struct bytes next_line(struct bytes *rest)
{
    const char *end = memchr(rest->at, '\n', rest->len);
    struct bytes line = { rest->at, end ? (size_t)(end - rest->at) : rest->len };
    size_t taken = line.len + (end != NULL);
    *rest = (struct bytes){ rest->at + taken, rest->len - taken };
    return line;
}

static struct bytes legend_of(const struct shared_head *h)
{
    return (struct bytes){ (const char *)h + h->legend_at, h->legend_bytes };
}

/* Adds a file of another layout to `totals`, name by name. Most names follow each other as ours do, so the next of ours
 * is looked at first. */
static void add_past(const struct shared_head *ours, const struct past *p, uint64_t totals[METRICS_COUNTERS])
{
    struct bytes *names = mem_alloc(METRICS_COUNTERS * sizeof *names),
                 rest = legend_of(ours); /* too much for a task's stack */
    uint64_t *sums = mem_alloc(p->head->counters * sizeof *sums);
    size_t at = 0;
    sum_file(p->head, atomic_load(&p->head->folded), sums);
    for (size_t i = 0; i < METRICS_COUNTERS; i++) names[i] = next_line(&rest);
    rest = legend_of(p->head);
    for (size_t c = 0; c < p->head->counters; c++) {
        struct bytes name = next_line(&rest);
        size_t tried = 0;
        if (sums[c] == 0) continue;
        while (tried < METRICS_COUNTERS && !bytes_equal(names[at], name)) {
            at = (at + 1) % METRICS_COUNTERS;
            tried++;
        }
        if (tried < METRICS_COUNTERS) totals[at] += sums[c];
    }
    free(sums);
    free(names);
}

/* The name of the next file of another layout in the folder; NULL after the last. */
static const char *next_past(struct shared *sh, DIR *folder)
{
    struct dirent *d = NULL;
    while (folder != NULL && (d = readdir(folder)) != NULL)
        if (strncmp(d->d_name, SHARED_FILE, sizeof SHARED_FILE - 1) == 0 && strcmp(d->d_name, shared_name(sh)) != 0)
            break;
    return d ? d->d_name : NULL;
}

static void read_all(struct shared *sh, uint64_t folded, uint64_t totals[METRICS_COUNTERS])
{
    struct past p;
    DIR *folder = opendir(shared_run_dir(sh));
    memset(totals, 0, METRICS_COUNTERS * sizeof *totals);
    sum_file(shared_head(sh), folded, totals);
    for (const char *name; (name = next_past(sh, folder)) != NULL;) {
        if (!past_open(&p, shared_run_dir(sh), name)) continue;
        if (p.head->id != folded >> 1) add_past(shared_head(sh), &p, totals);
        past_close(&p);
    }
    if (folder != NULL) closedir(folder);
}

void totals_read(struct shared *sh, uint64_t totals[METRICS_COUNTERS])
{
    uint64_t folded;
    do { /* a file that goes over to us meanwhile must count once */
        folded = atomic_load(&shared_head(sh)->folded);
        read_all(sh, folded, totals);
    } while (atomic_load(&shared_head(sh)->folded) != folded);
}

uint64_t totals_requests(const uint64_t *totals)
{
    uint64_t n = 0;
    for (size_t i = METRICS_REQUESTS_AT; i < METRICS_DURATIONS_AT; i++) n += totals[i];
    return n;
}

/* Nobody has it open, and nobody can open it before we are done. */
static bool past_is_ours_alone(const struct past *p)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SHARED_OPEN_BYTE, .l_len = 1 };
    return fcntl(p->fd, F_OFD_SETLK, &lock) == 0;
}

/* One store makes it count here and no more there: `folded`. Then the file may go, whenever that is. */
static void fold(struct shared_head *h, const struct past *p)
{
    uint64_t folded = atomic_load(&h->folded), *sums = mem_alloc(METRICS_COUNTERS * sizeof *sums);
    _Atomic uint64_t *base = (_Atomic uint64_t *)(void *)((char *)h + h->base_at);
    const _Atomic uint64_t *from = base + (folded & 1) * METRICS_COUNTERS;
    _Atomic uint64_t *to = base + !(folded & 1) * METRICS_COUNTERS;
    add_past(h, p, sums);
    for (size_t c = 0; c < METRICS_COUNTERS; c++) atomic_store(&to[c], atomic_load(&from[c]) + sums[c]);
    atomic_store(&h->folded, p->head->id << 1 | !(folded & 1));
    free(sums);
}

/* The file that is added already but not yet removed comes first: adding another forgets which one that was. */
static void fold_those(struct shared *sh, bool added_already)
{
    struct past p;
    struct shared_head *h = shared_head(sh);
    DIR *folder = opendir(shared_run_dir(sh));
    for (const char *name; (name = next_past(sh, folder)) != NULL;) {
        if (!past_open(&p, shared_run_dir(sh), name)) continue;
        bool added = p.head->id == atomic_load(&h->folded) >> 1;
        if (added == added_already && past_is_ours_alone(&p)) {
            if (!added) fold(h, &p);
            unlink(p.path);
        }
        past_close(&p);
    }
    if (folder != NULL) closedir(folder);
}

void totals_fold(struct shared *sh)
{
    fold_those(sh, true);
    fold_those(sh, false);
}
