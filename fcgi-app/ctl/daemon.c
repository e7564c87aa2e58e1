#include "daemon.h"

#include "clock.h"
#include "shared.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

const struct daemon_kind daemon_master = { "pool", "pool.pid", "hyperpage-fcgi" };
const struct daemon_kind daemon_coordinator = { "coordinator", "coordinator.pid", "hyperpage-coord" };

static int read_pid(const char *run_dir, const char *pid_file)
{
    char path[4096];
    int pid = 0;
    snprintf(path, sizeof path, "%s/%s", run_dir, pid_file);
    FILE *f = fopen(path, "re");
    if (f == NULL) return 0;
    if (fscanf(f, "%d", &pid) != 1 || pid <= 1) pid = 0;
    fclose(f);
    return pid;
}

static bool has_name(int pid, const char *name)
{
    char path[64], comm[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    bool any = fgets(comm, sizeof comm, f) != NULL;
    fclose(f);
    comm[strcspn(comm, "\n")] = '\0';
    return any && strcmp(comm, name) == 0;
}

/* Is this inode one of RUN_DIR/pool.state-X? Devices have other numbers in /proc/PID/maps on some file systems, paths
 * in other namespaces. */
static bool is_state_file(const char *run_dir, unsigned long inode)
{
    struct stat st;
    bool found = false;
    DIR *folder = opendir(run_dir);
    for (struct dirent *d; folder != NULL && !found && (d = readdir(folder)) != NULL;)
        found = strncmp(d->d_name, SHARED_FILE, sizeof SHARED_FILE - 1) == 0 &&
                fstatat(dirfd(folder), d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_ino == inode;
    if (folder != NULL) closedir(folder);
    return found;
}

static bool maps_state(int pid, const char *run_dir)
{
    char path[64], line[4096 + 128];
    unsigned long inode;
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    while (!found && fgets(line, sizeof line, f) != NULL)
        found = strstr(line, "/" SHARED_FILE) != NULL && sscanf(line, "%*s %*s %*s %*s %lu", &inode) == 1 &&
                is_state_file(run_dir, inode);
    fclose(f);
    return found;
}

bool daemon_find(const char *run_dir, const struct daemon_kind *kind, struct daemon *p, struct err *e)
{
    int pid = read_pid(run_dir, kind->pid_file);
    *p = (struct daemon)DAEMON_NONE;
    if (pid != 0) p->fd = (int)syscall(SYS_pidfd_open, pid, 0);
    /* In this order: what is seen of the number belongs to the descriptor as long as that process lives. */
    if (p->fd >= 0 && has_name(pid, kind->name) && maps_state(pid, run_dir) && !daemon_wait(p, 0)) {
        p->pid = pid;
        return true;
    }
    daemon_done(p);
    return err_set(e, ERR_UNAVAILABLE, "no %s runs with RUN_DIR=%.150s", kind->title, run_dir);
}

void daemon_done(struct daemon *p)
{
    if (p->fd >= 0) close(p->fd);
    *p = (struct daemon)DAEMON_NONE;
}

bool daemon_signal(const struct daemon *p, int signal_number, struct err *e)
{
    return syscall(SYS_pidfd_send_signal, p->fd, signal_number, NULL, 0) == 0 ||
           err_set(e, ERR_UNAVAILABLE, "process %d cannot be signalled: %s", (int)p->pid, strerror(errno));
}

bool daemon_wait(const struct daemon *p, int64_t deadline_ms)
{
    struct pollfd end = { .fd = p->fd, .events = POLLIN };
    for (;;) {
        int64_t left_ms = deadline_ms - clock_mono_ms();
        int n = poll(&end, 1, left_ms <= 0 ? 0 : left_ms < 60000 ? (int)left_ms : 60000);
        if (n > 0) return true;
        if (left_ms <= 0 && (n == 0 || errno != EINTR)) return false;
    }
}
