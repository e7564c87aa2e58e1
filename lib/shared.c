#include "shared.h"

#include "clock.h"
#include "mem.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYOUT_VERSION 2 /* to be raised when a field of `state` changes its meaning and not its size */

struct state {
    struct shared_head head;
    struct check checks[DEPENDENCY_COUNT];
    _Atomic int64_t sessions;
    _Atomic uint64_t base[2][METRICS_COUNTERS];
    struct slot slots[SHARED_SLOTS]; /* the legend follows */
};

struct shared {
    struct state *state;
    size_t bytes;
    char *run_dir;
    char name[32];
    int fd; /* holds our locks: it must live as long as we do, and never be inherited by a living child */
    struct slot *own;
};

/* One creator at a time, the others wait for it: a lock on the file, not a sleep. */
static bool prepare_file(int fd, const char *path, size_t bytes, struct err *e)
{
    struct stat st;
    bool ok = false;
    while (flock(fd, LOCK_EX) != 0)
        if (errno != EINTR) return err_set(e, ERR_INTERNAL, "%s: cannot be locked: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) {
        err_set(e, ERR_INTERNAL, "%s: %s", path, strerror(errno));
    } else if (st.st_size == 0) {
        int rc = posix_fallocate(fd, 0, (off_t)bytes);
        ok = rc == 0 ||
             err_set(e, ERR_INPUT, "RUN_DIR: %s: %zu bytes cannot be reserved: %s", path, bytes, strerror(rc));
        if (!ok && ftruncate(fd, 0) != 0) unlink(path);
    } else {
        ok = st.st_size == (off_t)bytes ||
             err_set(e, ERR_INPUT, "RUN_DIR: %s is not ours: %lld bytes", path, (long long)st.st_size);
    }
    flock(fd, LOCK_UN);
    return ok;
}

void *shared_map(const char *run_dir, const char *name, size_t bytes, int *fd, struct err *e)
{
    char path[4096];
    void *at = NULL;
    snprintf(path, sizeof path, "%s/%s", run_dir, name);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) {
        err_set(e, ERR_INPUT, "RUN_DIR=%s: %s cannot be opened: %s", run_dir, path, strerror(errno));
        return NULL;
    }
    if (prepare_file(file, path, bytes, e)) {
        at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (at == MAP_FAILED) {
            err_set(e, ERR_INTERNAL, "%s: cannot be mapped: %s", path, strerror(errno));
            at = NULL;
        } else {
            madvise(at, bytes, MADV_RANDOM); /* a process looks at few of its pages, and need not have the others */
        }
    }
    if (at != NULL && fd != NULL)
        *fd = file;
    else
        close(file);
    return at;
}

/* Names the layout: FNV-1a over the counters' names and all sizes. */
static void name_layout(struct shared *sh, struct bytes legend)
{
    uint32_t sizes[] = { LAYOUT_VERSION, SHARED_SLOTS, sizeof(struct state), sizeof(struct slot), METRICS_COUNTERS };
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) h = (h ^ sizes[i]) * 16777619u;
    for (size_t i = 0; i < legend.len; i++) h = (h ^ (unsigned char)legend.at[i]) * 16777619u;
    snprintf(sh->name, sizeof sh->name, SHARED_FILE "%08x", (unsigned)h);
}

static bool lock_byte(struct shared *sh, int cmd, short type, off_t byte, struct flock *lock)
{
    *lock = (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    return fcntl(sh->fd, cmd, lock) == 0;
}

/* The head says the same whoever writes it; the lock is for the id. */
static bool write_head(struct shared *sh, struct bytes legend, struct err *e)
{
    struct shared_head *h = &sh->state->head;
    bool ok = true;
    flock(sh->fd, LOCK_EX);
    if (atomic_load(&h->magic) == 0) {
        ok = getrandom(&h->id, sizeof h->id, 0) == sizeof h->id ||
             err_set(e, ERR_INTERNAL, "getrandom: %s", strerror(errno));
        h->id = (h->id & SHARED_ID_MASK) | 1;
        h->bytes = sh->bytes;
        h->slots = SHARED_SLOTS;
        h->slot_bytes = sizeof(struct slot);
        h->slots_at = offsetof(struct state, slots);
        h->counters_at = offsetof(struct slot, counter);
        h->counters = METRICS_COUNTERS;
        h->base_at = offsetof(struct state, base);
        h->legend_at = sizeof(struct state);
        h->legend_bytes = (uint32_t)legend.len;
        memcpy((char *)sh->state + h->legend_at, legend.at, legend.len);
        if (ok) atomic_store(&h->magic, SHARED_MAGIC);
    }
    flock(sh->fd, LOCK_UN);
    return ok && (atomic_load(&h->magic) == SHARED_MAGIC || err_set(e, ERR_INPUT, "RUN_DIR: %s is not ours", sh->name));
}

/* Maps the file as it stands under its name; again, if totals_fold() took it away between our open and our lock. */
static bool map_state(struct shared *sh, struct err *e)
{
    struct flock lock;
    struct stat st = { .st_nlink = 0 };
    do {
        if (sh->state != NULL) {
            munmap(sh->state, sh->bytes);
            close(sh->fd);
        }
        sh->state = shared_map(sh->run_dir, sh->name, sh->bytes, &sh->fd, e);
        if (sh->state == NULL) return false;
        if (!lock_byte(sh, F_OFD_SETLKW, F_RDLCK, SHARED_OPEN_BYTE, &lock) || fstat(sh->fd, &st) != 0)
            return err_set(e, ERR_INTERNAL, "RUN_DIR: %s cannot be locked: %s", sh->name, strerror(errno));
    } while (st.st_nlink == 0);
    return true;
}

struct shared *shared_open(const char *run_dir, struct err *e)
{
    struct buf legend = BUF_INIT(1024 * 1024);
    struct shared *sh = mem_alloc(sizeof *sh);
    metrics_legend(&legend);
    name_layout(sh, buf_bytes(&legend));
    sh->run_dir = mem_strdup(run_dir);
    sh->bytes = sizeof *sh->state + legend.len;
    bool ok = map_state(sh, e) && write_head(sh, buf_bytes(&legend), e);
    buf_done(&legend);
    if (ok) return sh;
    shared_forget(sh);
    return NULL;
}

void shared_close(struct shared *sh)
{
    if (sh == NULL) return;
    if (sh->own != NULL) {
        atomic_store(&sh->own->state, SLOT_GONE);
        atomic_store(&sh->own->pid, 0);
        atomic_store(&sh->own->busy_since_ms, 0);
        atomic_store(&sh->own->oldest_since_ms, 0);
    }
    shared_forget(sh);
}

void shared_forget(struct shared *sh)
{
    if (sh == NULL) return;
    if (sh->state != NULL) {
        munmap(sh->state, sh->bytes);
        close(sh->fd); /* the last descriptor takes the locks with it */
    }
    free(sh->run_dir);
    free(sh);
}

/* An open file description lock on the slot's byte: gone with its last descriptor, so with its process. */
static bool lock_slot(struct shared *sh, int cmd, size_t index, struct flock *lock)
{
    return lock_byte(sh, cmd, F_WRLCK, (off_t)index, lock);
}

/* Only ever grows. */
static void note_use(struct shared *sh, uint32_t slots)
{
    uint32_t used = atomic_load(&sh->state->head.slots_used);
    while (used < slots && !atomic_compare_exchange_weak(&sh->state->head.slots_used, &used, slots)) continue;
}

struct slot *shared_claim(struct shared *sh, enum slot_role role, struct err *e)
{
    struct flock lock;
    for (size_t i = 0; i < SHARED_SLOTS; i++) {
        if (!lock_slot(sh, F_OFD_SETLK, i, &lock)) continue;
        struct slot *s = &sh->state->slots[i];
        note_use(sh, (uint32_t)i + 1);
        atomic_store(&s->busy_since_ms, 0);
        atomic_store(&s->oldest_since_ms, 0);
        atomic_store(&s->connections, 0);
        atomic_store(&s->requests, 0);
        atomic_store(&s->started_ms, clock_wall_ms());
        atomic_store(&s->state, SLOT_STARTING);
        atomic_store(&s->role, (int32_t)role);
        atomic_store(&s->pid, (int32_t)getpid());
        sh->own = s;
        return s;
    }
    err_set(e, ERR_INTERNAL, "RUN_DIR: all %d slots of the shared state are taken", SHARED_SLOTS);
    return NULL;
}

struct slot *shared_slot(struct shared *sh, size_t index)
{
    return &sh->state->slots[index];
}

bool shared_slot_alive(struct shared *sh, size_t index)
{
    struct flock lock;
    return lock_slot(sh, F_OFD_GETLK, index, &lock) && lock.l_type != F_UNLCK;
}

struct slot *shared_slot_of(struct shared *sh, enum slot_role role, int32_t pid)
{
    for (size_t i = 0; i < shared_slots_used(sh); i++) {
        struct slot *s = &sh->state->slots[i];
        if (atomic_load(&s->pid) == pid && atomic_load(&s->role) == (int32_t)role &&
            (s == sh->own || shared_slot_alive(sh, i)))
            return s;
    }
    return NULL;
}

/* Whoever takes the slot meanwhile writes his own pid there, before or after: it stays. */
void shared_bury(struct shared *sh, enum slot_role role)
{
    for (size_t i = 0; i < shared_slots_used(sh); i++) {
        struct slot *s = &sh->state->slots[i];
        int32_t pid = atomic_load(&s->pid);
        if (pid != 0 && s != sh->own && atomic_load(&s->role) == (int32_t)role && !shared_slot_alive(sh, i))
            atomic_compare_exchange_strong(&s->pid, &pid, 0);
    }
}

struct check *shared_check(struct shared *sh, enum dependency d)
{
    return &sh->state->checks[d];
}

/* The file may be of an earlier run or, on a disk, of an earlier start of the machine: then it is from the future. */
enum check_state shared_check_state(struct shared *sh, enum dependency d, int64_t now_ms)
{
    const struct check *c = shared_check(sh, d);
    enum check_state state = (enum check_state)atomic_load(&c->state);
    int64_t age_ms = now_ms - atomic_load(&c->checked_ms);
    return state == CHECK_UNUSED || (age_ms >= 0 && age_ms <= CHECK_MOST_AGE_MS) ? state : CHECK_UNKNOWN;
}

void shared_check_note(struct shared *sh, enum dependency d, enum check_state is, int64_t began_us)
{
    struct check *c = shared_check(sh, d);
    int64_t now_us = clock_mono_us();
    if (is != shared_check_state(sh, d, began_us / 1000)) atomic_store(&c->since_ms, now_us / 1000);
    atomic_store(&c->latency_us, now_us - began_us);
    atomic_store(&c->checked_ms, now_us / 1000);
    atomic_store(&c->state, is);
}

_Atomic int64_t *shared_sessions(struct shared *sh)
{
    return &sh->state->sessions;
}

size_t shared_slots_used(struct shared *sh)
{
    return atomic_load(&sh->state->head.slots_used);
}

struct shared_head *shared_head(struct shared *sh)
{
    return &sh->state->head;
}

const char *shared_run_dir(struct shared *sh)
{
    return sh->run_dir;
}

const char *shared_name(struct shared *sh)
{
    return sh->name;
}
