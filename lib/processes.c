#include "processes.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const process_roles[] = { "unused", "master", "worker", "keeper", "coordinator" };

static bool is_alive(struct shared *sh, const struct slot *own, size_t i)
{
    const struct slot *s = shared_slot(sh, i);
    return atomic_load(&s->pid) != 0 && (s == own || shared_slot_alive(sh, i));
}

static void add_worker(struct processes *p, const struct slot *s)
{
    int32_t requests = atomic_load(&s->requests);
    p->connections += (uint64_t)atomic_load(&s->connections);
    p->requests += (uint64_t)requests;
    switch (atomic_load(&s->state)) {
    case SLOT_STARTING:
        p->starting++;
        break;
    case SLOT_DRAINING:
        p->draining++;
        break;
    default:
        *(requests > 0 ? &p->busy : &p->idle) += 1;
        break;
    }
}

void processes_read(struct shared *sh, const struct slot *own, struct processes *p)
{
    *p = (struct processes){ 0 };
    for (size_t i = 0; i < shared_slots_used(sh); i++) {
        const struct slot *s = shared_slot(sh, i);
        int64_t started_ms = atomic_load(&s->started_ms);
        bool worker = atomic_load(&s->role) == SLOT_WORKER;
        if (!is_alive(sh, own, i)) {
            p->dead += worker && atomic_load(&s->pid) != 0;
            continue;
        }
        if (worker) add_worker(p, s);
        if (p->started_ms == 0 || started_ms < p->started_ms) p->started_ms = started_ms;
    }
}

/* Newer kernels give the number as the folder's size. */
static uint64_t count_fds(int32_t pid)
{
    char path[64];
    struct stat st;
    uint64_t n = 0;
    snprintf(path, sizeof path, "/proc/%" PRId32 "/fd", pid);
    if (stat(path, &st) != 0) return 0;
    if (st.st_size > 0) return (uint64_t)st.st_size;
    DIR *folder = opendir(path);
    for (struct dirent *d; folder != NULL && (d = readdir(folder)) != NULL;) n += d->d_name[0] != '.';
    if (folder != NULL) closedir(folder);
    return n;
}

static void add_use(struct process_use *use, int32_t pid)
{
    char path[64];
    uint64_t size = 0, resident = 0, page = (uint64_t)sysconf(_SC_PAGESIZE);
    snprintf(path, sizeof path, "/proc/%" PRId32 "/statm", pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) return;
    if (fscanf(f, "%" SCNu64 " %" SCNu64, &size, &resident) == 2) {
        use->processes++;
        use->virtual_bytes += size * page;
        use->resident_bytes += resident * page;
        use->open_fds += count_fds(pid);
    }
    fclose(f);
}

void processes_read_use(struct shared *sh, const struct slot *own, struct process_use use[PROCESS_ROLES])
{
    memset(use, 0, PROCESS_ROLES * sizeof *use);
    for (size_t i = 0; i < shared_slots_used(sh); i++) {
        const struct slot *s = shared_slot(sh, i);
        int32_t role = atomic_load(&s->role);
        if (role > SLOT_UNUSED && role < PROCESS_ROLES && is_alive(sh, own, i))
            add_use(&use[role], atomic_load(&s->pid));
    }
}
