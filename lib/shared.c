#include "shared.h"

#include "clock.h"
#include "mem.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYOUT_VERSION 1
#define MAGIC 0x6870706f6f6c3101ULL

struct state {
    _Atomic uint64_t magic; /* written last by the creator */
    uint64_t bytes;
    struct slot slots[SHARED_SLOTS];
};

struct shared {
    struct state *state;
    int fd;  /* holds the lock on our slot: it must live as long as we do, and never be inherited by a living child */
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
        ok = rc == 0 || err_set(e, ERR_INPUT, "RUN_DIR: %s: %zu bytes cannot be reserved: %s", path, bytes, strerror(rc));
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
        }
    }
    if (at != NULL && fd != NULL) *fd = file;
    else close(file);
    return at;
}

struct shared *shared_open(const char *run_dir, struct err *e)
{
    char name[32];
    struct shared *sh = mem_alloc(sizeof *sh);
    snprintf(name, sizeof name, "pool.state-%d", LAYOUT_VERSION);
    sh->state = shared_map(run_dir, name, sizeof *sh->state, &sh->fd, e);
    uint64_t fresh = 0;
    if (sh->state == NULL) {
        free(sh);
        return NULL;
    }
    if (!atomic_compare_exchange_strong(&sh->state->magic, &fresh, MAGIC) && fresh != MAGIC) {
        err_set(e, ERR_INPUT, "RUN_DIR: %s is not ours", name);
        shared_forget(sh);
        return NULL;
    }
    return sh;
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
    munmap(sh->state, sizeof *sh->state);
    close(sh->fd); /* the last descriptor takes the lock with it */
    free(sh);
}

/* An open file description lock on the slot's byte: gone with its last descriptor, so with its process. */
static bool lock_slot(struct shared *sh, int cmd, size_t index, struct flock *lock)
{
    *lock = (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)index, .l_len = 1 };
    return fcntl(sh->fd, cmd, lock) == 0;
}

struct slot *shared_claim(struct shared *sh, enum slot_role role, struct err *e)
{
    struct flock lock;
    for (size_t i = 0; i < SHARED_SLOTS; i++) {
        if (!lock_slot(sh, F_OFD_SETLK, i, &lock)) continue;
        struct slot *s = &sh->state->slots[i];
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

struct slot *shared_slot_of(struct shared *sh, int32_t pid)
{
    for (size_t i = 0; i < SHARED_SLOTS; i++)
        if (atomic_load(&sh->state->slots[i].pid) == pid) return &sh->state->slots[i];
    return NULL;
}
