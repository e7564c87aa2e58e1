#include "shared.h"

#include "counted.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/test_shared.XXXXXX";
static const char *path; /* of the file, once it has been seen */

static int make_dir(void **state)
{
    (void)state;
    bool ok = mkdtemp(dir) != NULL;
    struct err e;
    struct shared *sh = ok ? shared_open(dir, &e) : NULL;
    path = state_path_in(dir);
    shared_close(sh);
    return sh == NULL || unlink(path) != 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

static int remove_file(void **state)
{
    (void)state;
    metrics_use(NULL);
    return unlink(path) != 0 && errno != ENOENT;
}

static struct shared *open_shared(void)
{
    struct err e = { 0 };
    struct shared *sh = shared_open(dir, &e);
    if (sh == NULL) print_error("%s\n", e.text);
    assert_non_null(sh);
    return sh;
}

static struct slot *claim(struct shared *sh, enum slot_role role)
{
    struct err e;
    struct slot *s = shared_claim(sh, role, &e);
    assert_non_null(s);
    return s;
}

static size_t index_of(struct shared *sh, const struct slot *s)
{
    return (size_t)(s - shared_slot(sh, 0));
}

/* A process that owns a slot, counts `counted` and says so, and then waits to be killed. */
static pid_t start_owner(uint64_t counted)
{
    int said[2];
    pid_t parent = getpid();
    char byte;
    assert_int_equal(pipe(said), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct err e;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct shared *sh = getppid() == parent ? shared_open(dir, &e) : NULL;
        struct slot *s = sh ? shared_claim(sh, SLOT_WORKER, &e) : NULL;
        if (s == NULL) _exit(1);
        metrics_use(s->counter);
        metrics_add(METRIC_sessions_created_total, counted);
        atomic_store(&s->busy_since_ms, 5);
        atomic_store(&s->oldest_since_ms, 5);
        atomic_store(&s->connections, 5);
        atomic_store(&s->requests, 5);
        if (write(said[1], "", 1) == 1)
            for (;;) pause();
        _exit(1);
    }
    close(said[1]);
    assert_int_equal(read(said[0], &byte, 1), 1);
    close(said[0]);
    return pid;
}

static void end_owner(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_slot_tells_who_owns_it(void **state)
{
    (void)state;
    struct shared *sh = open_shared(), *other = open_shared();
    struct slot *s = claim(sh, SLOT_KEEPER);
    assert_int_equal(atomic_load(&s->pid), getpid());
    assert_int_equal(atomic_load(&s->role), SLOT_KEEPER);
    assert_int_equal(atomic_load(&s->state), SLOT_STARTING);
    assert_ptr_equal(shared_slot_of(sh, SLOT_KEEPER, getpid()), s);
    assert_null(shared_slot_of(sh, SLOT_WORKER, getpid()));
    assert_null(shared_slot_of(sh, SLOT_KEEPER, 1));
    assert_true(shared_slot_alive(other, index_of(sh, s)));
    assert_false(shared_slot_alive(other, index_of(sh, s) + 1));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(st.st_blocks * 512 >= st.st_size); /* no hole to fall into */
    shared_close(sh);
    assert_false(shared_slot_alive(other, 0));
    assert_null(shared_slot_of(other, SLOT_KEEPER, getpid()));
    assert_int_equal(atomic_load(&shared_slot(other, 0)->state), SLOT_GONE);
    shared_close(other);
    shared_close(NULL);
    shared_forget(NULL);
}

static void living_processes_have_different_slots(void **state)
{
    (void)state;
    struct shared *sh = open_shared();
    pid_t pid[8];
    for (int i = 0; i < 8; i++) pid[i] = start_owner(1);
    for (int i = 0; i < 8; i++) {
        struct slot *s = shared_slot_of(sh, SLOT_WORKER, pid[i]);
        assert_non_null(s);
        assert_true(shared_slot_alive(sh, index_of(sh, s)));
        for (int j = 0; j < i; j++) assert_ptr_not_equal(s, shared_slot_of(sh, SLOT_WORKER, pid[j]));
    }
    for (int i = 0; i < 8; i++) end_owner(pid[i]);
    for (size_t i = 0; i < SHARED_SLOTS; i++) assert_false(shared_slot_alive(sh, i));
    shared_close(sh);
}

static void a_killed_owner_s_slot_is_taken_over_with_its_counters(void **state)
{
    (void)state;
    struct shared *sh = open_shared();
    pid_t first = start_owner(1), killed = start_owner(41);
    struct slot *theirs = shared_slot_of(sh, SLOT_WORKER, killed);
    end_owner(killed);
    assert_null(
        shared_slot_of(sh, SLOT_WORKER, killed)); /* whoever has that pid next did nothing of what stands there */
    assert_false(shared_slot_alive(sh, index_of(sh, theirs)));
    struct slot *ours = claim(sh, SLOT_MASTER);
    assert_ptr_equal(ours, theirs);
    assert_int_equal(atomic_load(&ours->counter[METRIC_sessions_created_total]), 41);
    assert_int_equal(atomic_load(&ours->busy_since_ms), 0); /* but nothing of what it was doing */
    assert_int_equal(atomic_load(&ours->oldest_since_ms), 0);
    assert_int_equal(atomic_load(&ours->connections), 0);
    assert_int_equal(atomic_load(&ours->requests), 0);
    metrics_use(ours->counter);
    metrics_add(METRIC_sessions_created_total, 1);
    assert_int_equal(counted_in(sh, METRIC_sessions_created_total), 43);
    end_owner(first);
    assert_int_equal(counted_in(sh, METRIC_sessions_created_total), 43); /* no counter ever falls */
    shared_close(sh);
}

/* Whose successor sits elsewhere is not missing any more; the living and those of another role are left alone. */
static void the_dead_are_buried_and_their_counters_stay(void **state)
{
    (void)state;
    struct shared *sh = open_shared();
    pid_t dead = start_owner(41), living = start_owner(1);
    struct slot *theirs = shared_slot_of(sh, SLOT_WORKER, dead), *own = claim(sh, SLOT_WORKER);
    end_owner(dead);
    shared_bury(sh, SLOT_KEEPER);
    assert_int_equal(atomic_load(&theirs->pid), dead);
    shared_bury(sh, SLOT_WORKER);
    assert_int_equal(atomic_load(&theirs->pid), 0);
    assert_null(shared_slot_of(sh, SLOT_WORKER, dead));
    assert_non_null(shared_slot_of(sh, SLOT_WORKER, living));
    assert_ptr_equal(shared_slot_of(sh, SLOT_WORKER, getpid()), own);
    assert_int_equal(counted_in(sh, METRIC_sessions_created_total), 42);
    end_owner(living);
    shared_close(sh);
}

static void a_fork_neither_takes_nor_frees_its_parent_s_slot(void **state)
{
    (void)state;
    struct shared *sh = open_shared(), *other = open_shared();
    struct slot *s = claim(sh, SLOT_MASTER);
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        struct err e;
        shared_forget(sh);
        struct shared *own = shared_open(dir, &e);
        struct slot *mine = own ? shared_claim(own, SLOT_WORKER, &e) : NULL;
        bool right = mine != NULL && mine == shared_slot(own, 1) && shared_slot_alive(own, 0);
        shared_close(own);
        _exit(!right);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(atomic_load(&s->pid), getpid());
    assert_true(shared_slot_alive(other, 0));
    shared_close(sh);
    shared_close(other);
}

static void all_slots_taken_is_said_in_one_line(void **state)
{
    (void)state;
    static struct shared *sh[SHARED_SLOTS + 1];
    struct err e = { 0 };
    for (int i = 0; i <= SHARED_SLOTS; i++) sh[i] = open_shared();
    for (int i = 0; i < SHARED_SLOTS; i++) assert_ptr_equal(shared_slot(sh[i], (size_t)i), claim(sh[i], SLOT_WORKER));
    assert_null(shared_claim(sh[SHARED_SLOTS], SLOT_WORKER, &e));
    assert_non_null(strstr(e.text, "RUN_DIR: all "));
    assert_non_null(strstr(e.text, " slots of the shared state are taken"));
    for (int i = 0; i <= SHARED_SLOTS; i++) shared_close(sh[i]);
}

#define CREATORS 8

static void many_create_it_at_once(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        int go[2], slot[2], status;
        pid_t pid[CREATORS];
        bool taken[CREATORS] = { false };
        assert_int_equal(pipe(go) | pipe(slot), 0);
        for (int i = 0; i < CREATORS; i++) {
            pid[i] = fork();
            if (pid[i] != 0) continue;
            struct err e;
            char byte;
            close(go[1]);
            if (read(go[0], &byte, 1) != 0) _exit(2);
            struct shared *sh = shared_open(dir, &e);
            struct slot *s = sh ? shared_claim(sh, SLOT_WORKER, &e) : NULL;
            if (s == NULL) _exit(3);
            metrics_use(s->counter);
            metrics_add(METRIC_sessions_created_total, 1);
            byte = (char)index_of(sh, s);
            if (write(slot[1], &byte, 1) != 1) _exit(4);
            for (;;) pause();
        }
        close(go[0]);
        close(go[1]);
        for (int i = 0; i < CREATORS; i++) {
            char n;
            assert_int_equal(read(slot[0], &n, 1), 1);
            assert_in_range(n, 0, CREATORS - 1);
            assert_false(taken[(int)n]);
            taken[(int)n] = true;
        }
        struct shared *sh = open_shared();
        assert_int_equal(counted_in(sh, METRIC_sessions_created_total), CREATORS);
        shared_close(sh);
        for (int i = 0; i < CREATORS; i++) {
            kill(pid[i], SIGKILL);
            assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        }
        close(slot[0]);
        close(slot[1]);
        unlink(path);
    }
}

static void assert_refused(const char *run_dir, const char *text)
{
    struct err e = { 0 };
    assert_null(shared_open(run_dir, &e));
    assert_int_equal(e.kind, ERR_INPUT);
    if (strstr(e.text, text) == NULL) assert_string_equal(e.text, text);
    assert_null(strchr(e.text, '\n'));
}

static void write_file(const char *bytes, size_t len, off_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, bytes, len), (ssize_t)len);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

static void a_file_that_is_not_ours_is_refused_and_kept(void **state)
{
    (void)state;
    struct stat st;
    write_file("something else", 14, 14);
    assert_refused(dir, "is not ours: 14 bytes");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 14);
    unlink(path);
    shared_close(open_shared());
    assert_int_equal(stat(path, &st), 0);
    write_file("something else", 14, st.st_size);
    assert_refused(dir, "is not ours");
    write_file("", 0, st.st_size - 1);
    assert_refused(dir, "is not ours: ");
    unlink(path);
    assert_int_equal(symlink("/dev/null", path), 0); /* in a folder that others may write */
    assert_refused(dir, "cannot be opened: ");
}

static void a_folder_that_is_not_there_is_refused(void **state)
{
    (void)state;
    char none[64];
    snprintf(none, sizeof none, "%s/none", dir);
    assert_refused(none, " cannot be opened: No such file or directory");
}

/* In a mount namespace of its own, so that nothing stays mounted. */
static void a_full_disk_is_refused_and_leaves_an_empty_file_at_most(void **state)
{
    (void)state;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        struct err e = { 0 };
        struct stat st;
        if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("none", dir, "tmpfs", 0, "size=64k") != 0)
            _exit(77);
        if (shared_open(dir, &e) != NULL || e.kind != ERR_INPUT) _exit(1);
        if (strstr(e.text, "bytes cannot be reserved: No space left on device") == NULL) _exit(2);
        if (stat(path, &st) == 0 && st.st_size != 0) _exit(3);
        if (mount("none", dir, "tmpfs", MS_REMOUNT, "size=16m") != 0) _exit(77);
        struct shared *sh = shared_open(dir, &e); /* there is room now */
        shared_close(sh);
        _exit(sh == NULL ? 4 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) skip(); /* mounting needs root */
    assert_int_equal(WEXITSTATUS(status), 0);
}

#define FRESH(f) cmocka_unit_test_teardown(f, remove_file)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(a_slot_tells_who_owns_it),
        FRESH(living_processes_have_different_slots),
        FRESH(a_killed_owner_s_slot_is_taken_over_with_its_counters),
        FRESH(the_dead_are_buried_and_their_counters_stay),
        FRESH(a_fork_neither_takes_nor_frees_its_parent_s_slot),
        FRESH(all_slots_taken_is_said_in_one_line),
        FRESH(many_create_it_at_once),
        FRESH(a_file_that_is_not_ours_is_refused_and_kept),
        FRESH(a_folder_that_is_not_there_is_refused),
        FRESH(a_full_disk_is_refused_and_leaves_an_empty_file_at_most),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
