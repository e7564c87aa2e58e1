#include "session_cache.h"

#include "cache_world.h"
#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ONE_SET       (128 * 1024) /* a cache of one set: all sessions compete */
#define TABLE_BYTES   (4096 + ONE_SET)
#define CONTROL_BYTES (128 + 4 * 1024)

static char dir[] = "/tmp/test_session_cache.XXXXXX", dir2[] = "/tmp/test_session_cache.XXXXXX";
static _Atomic uint64_t counters[METRICS_COUNTERS]; /* where this process counts */
static struct buf doc = BUF_INIT(200000);
static struct session_copy copy;

static const char *path_of(const char *folder, const char *name)
{
    static char path[2][128];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static void remove_files(const char *folder)
{
    unlink(path_of(folder, "session_cache"));
    unlink(path_of(folder, "session_cache-1"));
}

static int make_dirs(void **state)
{
    (void)state;
    metrics_use(counters);
    signal(SIGXFSZ, SIG_IGN);
    return mkdtemp(dir) == NULL || mkdtemp(dir2) == NULL;
}

static int remove_dirs(void **state)
{
    (void)state;
    buf_done(&doc);
    return rmdir(dir) | rmdir(dir2);
}

static int clean(void **state)
{
    (void)state;
    clock_set(-1, -1);
    remove_files(dir);
    remove_files(dir2);
    return log_open("test", LOG_INFO, LOG_TEXT, "", NULL) ? 0 : 1;
}

static struct session_cache *open_in(const char *folder, int64_t bytes)
{
    struct err e = { 0 };
    struct session_cache *c = session_cache_open(folder, bytes, &e);
    if (c == NULL) print_error("%s\n", e.text);
    assert_non_null(c);
    return c;
}

static struct session_cache *open_cache(int64_t bytes)
{
    return open_in(dir, bytes);
}

static bool get(struct session_cache *c, const char *id)
{
    buf_reset(&doc);
    return session_cache_get(c, id, &doc, &copy);
}

static void put(struct session_cache *c, const char *id, const char *text)
{
    session_cache_put(c, id, bytes_of(text), 0, session_cache_epoch(c, id));
}

static void note_write(struct session_cache *c, const char *id, const char *text)
{
    session_cache_note_write(c, id, bytes_of(text), 0, session_cache_epoch(c, id));
}

static void assert_holds(struct session_cache *c, const char *id, const char *text, bool proven)
{
    assert_true(get(c, id));
    assert_string_equal(buf_text(&doc), text);
    assert_int_equal(copy.proven, proven);
}

static uint64_t counted(enum metric m)
{
    return atomic_load(&counters[m]);
}

static int64_t entries(struct session_cache *c)
{
    struct session_cache_stats stats;
    session_cache_stats(c, &stats);
    return stats.entries;
}

static bool is_on(struct session_cache *c)
{
    struct session_cache_stats stats;
    session_cache_stats(c, &stats);
    return stats.limit_bytes > 0;
}

static void *map(const char *path, size_t bytes)
{
    int fd = open(path, O_RDWR);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_ptr_not_equal(at, MAP_FAILED);
    return at;
}

/* --- what it keeps ---------------------------------------------------------------------------------------------- */

static void what_was_filled_is_found_by_all_with_its_times(void **state)
{
    (void)state;
    struct session_cache *a = open_cache(1 << 20), *b = open_cache(1 << 20);
    clock_set(1700000000000, 5000);
    assert_false(get(a, "s1"));
    session_cache_put(a, "s1", bytes_of("{\"a\":1}"), 1700000060000, session_cache_epoch(a, "s1"));
    assert_holds(b, "s1", "{\"a\":1}", true);
    assert_true(copy.expires_at_ms == 1700000060000);
    assert_int_equal(copy.filled_ms, 5000);
    assert_false(get(b, "s2"));
    assert_false(get(b, ""));
    put(b, "s2", "");
    assert_holds(a, "s2", "", true);
    session_cache_close(b);
    session_cache_close(a);
}

static void documents_of_every_length_come_back_byte_for_byte(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    char *text = mem_alloc(SESSION_CACHE_MOST_DOC_BYTES + 2), id[130];
    memset(id, 'i', sizeof id);
    for (size_t i = 0; i < SESSION_CACHE_MOST_DOC_BYTES + 1; i++) text[i] = (char)(i * 7 + i / 251);
    for (size_t len = 0; len <= SESSION_CACHE_MOST_DOC_BYTES; len += len < 600 ? 1 : 4997) {
        id[1 + len % 128] = '\0';
        session_cache_note_write(c, id, (struct bytes){ text, len }, 0, session_cache_epoch(c, id));
        assert_true(get(c, id));
        assert_int_equal(doc.len, len);
        if (len > 0) assert_memory_equal(doc.data, text, len);
        id[1 + len % 128] = 'i';
    }
    /* Too long: not kept, and what was there before is no longer true. */
    session_cache_put(c, "s", (struct bytes){ text, SESSION_CACHE_MOST_DOC_BYTES }, 0, session_cache_epoch(c, "s"));
    assert_true(get(c, "s"));
    session_cache_note_write(c, "s", (struct bytes){ text, SESSION_CACHE_MOST_DOC_BYTES + 1 }, 0,
                             session_cache_epoch(c, "s"));
    assert_false(get(c, "s"));
    session_cache_put(c, "s", (struct bytes){ text, SESSION_CACHE_MOST_DOC_BYTES + 1 }, 0, session_cache_epoch(c, "s"));
    assert_false(get(c, "s"));
    id[129] = '\0'; /* 129 bytes */
    note_write(c, id, "x");
    assert_false(get(c, id));
    free(text);
    session_cache_close(c);
}

static void a_buffer_too_small_gets_nothing(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    struct buf small = BUF_INIT(3);
    put(c, "s", "four");
    assert_false(session_cache_get(c, "s", &small, &copy));
    assert_int_equal(small.len, 0);
    buf_done(&small);
    session_cache_close(c);
}

static void an_expired_copy_is_never_returned(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    uint64_t expiries = counted(METRIC_cache_expiries_total);
    clock_set(1000000, -1);
    session_cache_put(c, "s", bytes_of("x"), 1000100, session_cache_epoch(c, "s"));
    clock_set(1000099, -1);
    assert_true(get(c, "s"));
    clock_set(1000100, -1);
    assert_false(get(c, "s"));
    assert_int_equal(entries(c), 0);
    assert_false(get(c, "s"));
    assert_int_equal(counted(METRIC_cache_expiries_total), expiries + 1);
    session_cache_close(c);
}

static void what_is_read_stays_when_room_is_short(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    struct session_cache_stats stats;
    uint64_t evictions = counted(METRIC_cache_evictions_total);
    char id[40], text[24000];
    int kept = 0, stored = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        uint64_t epoch = session_cache_epoch(c, world_id(i, id));
        session_cache_put(c, id, (struct bytes){ world_doc(i, 1, text).at, 700 }, 0, epoch);
        for (uint32_t hot = 0; hot < 50 && hot <= i; hot++) get(c, world_id(hot, id));
    }
    for (uint32_t i = 0; i < 1000; i++) {
        bool found = get(c, world_id(i, id));
        if (i < 50) kept += found;
        stored += found;
    }
    session_cache_stats(c, &stats);
    print_message("           %d documents of 700 bytes in %d KiB; %d of 50 hot ones stay while 950 pass\n", stored,
                  ONE_SET / 1024, kept);
    assert_true(kept >= 45);
    assert_true(stored * (700 + 36) >= ONE_SET * 7 / 10); /* at most 30 % waste */
    assert_int_equal(stats.entries, stored);
    assert_int_equal(counted(METRIC_cache_evictions_total) - evictions, 1000 - (uint64_t)stored);
    assert_in_range(stats.bytes, stored * (700 + 36), ONE_SET);
    session_cache_close(c);
}

/* --- what it says of them ----------------------------------------------------------------------------------------- */

static void a_fill_that_was_overtaken_is_ignored(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    uint64_t epoch = session_cache_epoch(c, "s");
    note_write(c, "s", "new");
    session_cache_put(c, "s", bytes_of("old"), 0, epoch);
    assert_holds(c, "s", "new", true);

    epoch = session_cache_epoch(c, "s");
    session_cache_drop(c, "s");
    session_cache_put(c, "s", bytes_of("old"), 0, epoch);
    assert_false(get(c, "s"));

    epoch = session_cache_epoch(c, "s");
    session_cache_invalidate(c, "s");
    session_cache_put(c, "s", bytes_of("old"), 0, epoch);
    assert_false(get(c, "s"));

    epoch = session_cache_epoch(c, "s");
    session_cache_invalidate_all(c);
    session_cache_put(c, "s", bytes_of("old"), 0, epoch);
    assert_false(get(c, "s"));

    put(c, "s", "now");
    assert_holds(c, "s", "now", true);
    session_cache_close(c);
}

static void of_two_writes_in_unknown_order_none_is_kept(void **state)
{
    (void)state;
    struct session_cache *a = open_cache(ONE_SET), *b = open_cache(ONE_SET);
    uint64_t epoch = session_cache_epoch(a, "s"); /* both have asked before both wrote */
    session_cache_note_write(b, "s", bytes_of("newer or older"), 0, epoch);
    session_cache_note_write(a, "s", bytes_of("older or newer"), 0, epoch);
    assert_false(get(a, "s"));
    note_write(a, "s", "now");
    assert_holds(b, "s", "now", true);
    session_cache_close(b);
    session_cache_close(a);
}

static bool note_late(struct session_cache *c, const char *text, uint64_t epoch)
{
    return session_cache_note_write(c, "s", bytes_of(text), 0, epoch);
}

/* As every write is that Redis tells of before it has answered us. */
static void a_write_that_was_only_invalidated_meanwhile_leaves_an_unproven_copy(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    note_write(c, "s", "first");
    for (int i = 0; i < 3; i++) { /* the copy it leaves is one to go on from */
        uint64_t epoch = session_cache_epoch(c, "s");
        session_cache_invalidate(c, "s");
        assert_true(note_late(c, i % 2 ? "odd" : "even", epoch));
        assert_holds(c, "s", i % 2 ? "odd" : "even", false);
    }
    put(c, "s", "read");
    assert_holds(c, "s", "read", true);
    session_cache_close(c);
}

static void a_write_beside_an_invalidation_and_another_write_leaves_none(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    uint64_t earlier, later;
    for (int order = 0; order < 2; order++) { /* of what was heard; of the writes nobody knows it */
        note_write(c, "s", "first");
        earlier = session_cache_epoch(c, "s");
        session_cache_invalidate(c, "s");
        later = session_cache_epoch(c, "s");
        assert_true(note_late(c, "one", order ? later : earlier));
        assert_false(note_late(c, "other", order ? earlier : later));
        assert_false(get(c, "s"));
    }
    note_write(c, "s", "first");
    earlier = session_cache_epoch(c, "s");
    session_cache_drop(c, "s"); /* no copy, no telling whether there was one since */
    assert_false(note_late(c, "other", earlier));
    earlier = session_cache_epoch(c, "s");
    note_write(c, "s", "filled");
    session_cache_invalidate_all(c);
    assert_false(note_late(c, "other", earlier));
    assert_false(get(c, "s"));
    session_cache_close(c);
}

static void of_a_new_table_no_epoch_of_the_old_one_says_anything(void **state)
{
    (void)state;
    struct session_cache *a = open_cache(2 * ONE_SET);
    for (int i = 0; i < 5; i++) note_write(a, "s", "old");
    uint64_t epoch = session_cache_epoch(a, "s");
    struct session_cache *b = open_cache(ONE_SET);
    note_write(b, "s", "new");
    assert_false(note_late(a, "old", epoch));
    assert_false(get(b, "s"));
    session_cache_close(b);
    session_cache_close(a);
}

static void an_invalidated_copy_stays_unproven_until_it_is_filled_again(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    put(c, "s", "x");
    session_cache_invalidate(c, "s");
    assert_holds(c, "s", "x", false);
    put(c, "s", "x");
    assert_holds(c, "s", "x", true);
    session_cache_invalidate_all(c);
    assert_holds(c, "s", "x", false);
    note_write(c, "s", "y");
    assert_holds(c, "s", "y", true);
    session_cache_drop(c, "s");
    assert_false(get(c, "s"));
    session_cache_close(c);
}

/* 150 sessions in 256 buckets: many share one. */
static void a_change_of_one_session_leaves_the_others_alone(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    char id[40];
    for (uint32_t i = 0; i < 150; i++) put(c, world_id(i, id), "x");
    for (uint32_t i = 0; i < 50; i++) {
        note_write(c, world_id(i * 3, id), "y");
        uint64_t epoch = session_cache_epoch(c, world_id(i * 3 + 1, id));
        session_cache_invalidate(c, id);
        session_cache_note_write(c, id, bytes_of("z"), 0, epoch);
    }
    for (uint32_t i = 0; i < 150; i++)
        assert_holds(c, world_id(i, id), (const char *[]){ "y", "z", "x" }[i % 3], i % 3 != 1);
    for (uint32_t i = 0; i < 50; i++) session_cache_drop(c, world_id(i * 3, id));
    for (uint32_t i = 0; i < 150; i++) assert_int_equal(get(c, world_id(i, id)), i % 3 != 0);
    session_cache_close(c);
}

/* --- the files ---------------------------------------------------------------------------------------------------- */

static void files_are_private_and_reserved(void **state)
{
    (void)state;
    static const char *const names[] = { "session_cache", "session_cache-1" };
    static const size_t least[] = { CONTROL_BYTES, 2 << 20 };
    struct session_cache *c = open_cache(2 << 20);
    struct stat st;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stat(path_of(dir, names[i]), &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        assert_true((size_t)st.st_size >= least[i]);
        assert_true((size_t)st.st_blocks * 512 >= least[i]);
    }
    session_cache_close(c);
}

/* How much of the table's file is in this process' memory. */
static int resident_kib(void)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    int kib = -1;
    assert_non_null(f);
    for (bool here = false; kib < 0 && fgets(line, sizeof line, f) != NULL;) {
        here = here || strstr(line, "/session_cache-1\n") != NULL;
        if (here) sscanf(line, "Rss: %d kB", &kib);
    }
    fclose(f);
    return kib;
}

static void of_a_large_table_only_what_is_touched_is_in_memory(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(64 << 20);
    char id[40];
    for (uint32_t i = 0; i < 64; i++) note_write(c, world_id(i, id), "x");
    assert_in_range(resident_kib(), 1,
                    64 * 5 * 4); /* five pages each; beside each page the kernel would map up to fifteen more */
    session_cache_close(c);
}

static void a_new_size_is_followed_by_all(void **state)
{
    (void)state;
    struct session_cache *old = open_cache(ONE_SET), *off = NULL;
    struct session_cache_stats stats;
    put(old, "s", "x");
    uint64_t epoch = session_cache_epoch(old, "t");
    struct session_cache *new = open_cache(3 * ONE_SET + 5000);
    assert_false(get(new, "s"));
    session_cache_put(old, "t", bytes_of("of the old table's time"), 0, epoch);
    assert_false(get(new, "t"));
    put(new, "s", "y");
    assert_holds(old, "s", "y", true);
    note_write(old, "s", "z");
    assert_holds(new, "s", "z", true);
    session_cache_stats(old, &stats);
    assert_int_equal(stats.limit_bytes, 3 * ONE_SET);

    off = open_cache(0); /* and off for all */
    assert_int_equal(access(path_of(dir, "session_cache-1"), F_OK), -1);
    assert_false(get(new, "s"));
    put(old, "s", "x");
    assert_false(get(old, "s"));
    struct session_cache *on = open_cache(ONE_SET); /* and on again, for who came without as well */
    put(on, "s", "1");
    note_write(off, "s", "2");
    assert_holds(on, "s", "2", true);
    session_cache_close(on);
    session_cache_close(off);
    session_cache_close(new);
    session_cache_close(old);
}

static void without_room_all_goes_on_without_cache_until_there_is(void **state)
{
    (void)state;
    struct rlimit was, low;
    getrlimit(RLIMIT_FSIZE, &was);
    low = (struct rlimit){ .rlim_cur = 1 << 20, .rlim_max = was.rlim_max };
    setrlimit(RLIMIT_FSIZE, &low);
    log_open("test", LOG_INFO, LOG_TEXT, path_of(dir2, "log"), NULL);
    struct session_cache *c = open_cache(16 << 20);
    session_cache_tend(c);
    setrlimit(RLIMIT_FSIZE, &was);
    put(c, "s", "x");
    session_cache_drop(c, "s");
    session_cache_invalidate(c, "s");
    assert_false(get(c, "s"));
    assert_false(is_on(c));
    session_cache_tend(c);
    put(c, "s", "x");
    assert_true(get(c, "s"));
    session_cache_close(c);

    char log[2000] = "", *line = log;
    FILE *f = fopen(path_of(dir2, "log"), "r");
    log[fread(log, 1, sizeof log - 1, f)] = '\0';
    fclose(f);
    unlink(path_of(dir2, "log"));
    assert_non_null(line = strstr(line, "session cache is off: error="));
    assert_null(strstr(line + 1, "session cache is off")); /* said once */
    assert_non_null(strstr(line, "session cache is on: bytes=16777216"));
}

static void beside_processes_of_another_layout_there_is_no_cache(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    put(c, "s", "x");
    int fd = open(path_of(dir, "session_cache"), O_RDWR);
    struct flock l = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 1 + 1024 + 2, .l_len = 1 };
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &l), 0); /* layout 2 */
    struct session_cache *later = open_cache(ONE_SET);
    assert_false(get(later, "s"));
    assert_false(get(c, "s"));
    session_cache_tend(c);
    assert_false(is_on(c));
    close(fd);
    session_cache_tend(c);
    assert_true(is_on(later));
    assert_false(get(c, "s"));
    session_cache_close(later);
    session_cache_close(c);
}

static void after_a_time_without_processes_copies_are_unproven_and_after_a_reboot_gone(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET), *other = open_cache(ONE_SET);
    put(c, "s", "x");
    session_cache_close(other);
    other = open_cache(ONE_SET);
    assert_holds(other, "s", "x", true);
    session_cache_close(other);
    session_cache_close(c);
    c = open_cache(ONE_SET);
    assert_holds(c, "s", "x", false);
    session_cache_close(c);
    uint64_t *control = map(path_of(dir, "session_cache"), CONTROL_BYTES);
    control[1] ^= 1; /* boot */
    munmap(control, CONTROL_BYTES);
    c = open_cache(ONE_SET);
    assert_false(get(c, "s"));
    assert_true(is_on(c));
    session_cache_close(c);
}

static void a_file_of_something_else_is_refused(void **state)
{
    (void)state;
    struct err e = { 0 };
    int fd = open(path_of(dir, "session_cache"), O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    assert_null(session_cache_open(dir, ONE_SET, &e));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_null(session_cache_open("/nowhere", ONE_SET, &e));
    assert_int_equal(e.kind, ERR_INPUT);
}

/* With a file's name behind it, it would be cut to a path that is another one. */
static void a_folder_whose_name_is_too_long_is_refused(void **state)
{
    (void)state;
    struct err e = { 0 };
    char name[4001];
    memset(name, '/', sizeof name);
    memcpy(name, dir, strlen(dir));
    name[4000] = '\0';
    assert_null(session_cache_open(name, ONE_SET, &e));
    assert_string_equal(e.text, "RUN_DIR is longer than 3999 bytes");
}

static void a_copy_whose_checksum_does_not_fit_is_no_copy(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    char *table = map(path_of(dir, "session_cache-1"), TABLE_BYTES);
    put(c, "s", "a document that is in the file just once");
    char *at = memmem(table, TABLE_BYTES, "just once", 9);
    assert_non_null(at);
    assert_true(get(c, "s"));
    at[0] ^= 4;
    assert_false(get(c, "s"));
    at[0] ^= 4;
    assert_true(get(c, "s"));
    munmap(table, TABLE_BYTES);
    session_cache_close(c);
}

/* --- a set that somebody else owns -------------------------------------------------------------------------------- */

#define OWNER_OF_SET 512 /* in words of the table file of one set */
#define SEED         2   /* of hashes; which sessions share a bucket follows from it */

/* Makes `c` look as if its process stood still within an operation: place 2, first incarnation. */
static void own_the_set(uint64_t *table)
{
    assert_int_equal(table[OWNER_OF_SET], 0);
    table[OWNER_OF_SET] = 1 << 16 | 2;
}

static void who_finds_the_set_owned_waits_for_nobody_and_leaves_nothing_old(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET), *stopped = open_cache(ONE_SET);
    static const char *const ids[] = { "written", "dropped", "invalidated", "filled" };
    uint64_t *table = map(path_of(dir, "session_cache-1"), TABLE_BYTES);
    table[SEED] = 1;
    for (int i = 0; i < 4; i++) put(c, ids[i], "old");
    own_the_set(table);
    for (int i = 0; i < 4; i++) assert_holds(c, ids[i], "old", true); /* readers do not care */
    uint64_t epoch = session_cache_epoch(c, "written");
    note_write(c, "written", "new");
    assert_false(get(c, "written"));
    session_cache_drop(c, "dropped");
    assert_false(get(c, "dropped"));
    session_cache_invalidate(c, "invalidated");
    assert_holds(c, "invalidated", "old", false);
    put(c, "filled", "new");
    assert_holds(c, "filled", "old", true);

    session_cache_close(stopped); /* dies */
    session_cache_put(c, "written", bytes_of("overtaken"), 0, epoch);
    assert_false(get(c, "written"));
    note_write(c, "written", "newer");
    assert_holds(c, "written", "newer", true);
    put(c, "dropped", "again");
    assert_holds(c, "dropped", "again", true);
    assert_holds(c, "invalidated", "old", false);
    munmap(table, TABLE_BYTES);
    session_cache_close(c);
}

static void a_place_taken_over_does_not_make_the_dead_owner_live(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET), *dead = open_cache(ONE_SET);
    put(c, "s", "old");
    uint64_t *table = map(path_of(dir, "session_cache-1"), TABLE_BYTES);
    own_the_set(table);
    session_cache_close(dead);
    struct session_cache *successor = open_cache(ONE_SET);
    note_write(c, "s", "new");
    assert_holds(successor, "s", "new", true);
    munmap(table, TABLE_BYTES);
    session_cache_close(successor);
    session_cache_close(c);
}

/* --- killed and stopped at every instruction ---------------------------------------------------------------------- */

/* Sessions 0 to CROWD - 1 of version 1 fill the one set. */
#define CROWD 183

static void fill(struct session_cache *c, const char *id, struct bytes text, uint64_t epoch)
{
    session_cache_put(c, id, text, 0, epoch);
}

static void write_noted(struct session_cache *c, const char *id, struct bytes text, uint64_t epoch)
{
    session_cache_note_write(c, id, text, 0, epoch);
}

/* Redis has told of it before it answered. */
static void write_echoed(struct session_cache *c, const char *id, struct bytes text, uint64_t epoch)
{
    session_cache_invalidate(c, id);
    session_cache_note_write(c, id, text, 0, epoch);
}

static void drop(struct session_cache *c, const char *id, struct bytes text, uint64_t epoch)
{
    (void)text, (void)epoch;
    session_cache_drop(c, id);
}

static void invalidate(struct session_cache *c, const char *id, struct bytes text, uint64_t epoch)
{
    (void)text, (void)epoch;
    session_cache_invalidate(c, id);
}

static const struct op {
    const char *name;
    void (*run)(struct session_cache *c, const char *id, struct bytes text, uint64_t epoch);
    uint32_t session, version;
    uint32_t least; /* version that may be seen if it dies; above 1 where version 1 is dropped before */
} ops[] = {
    { "fill of a new session, with evictions", fill, CROWD, 2, 1 },
    { "write in place", write_noted, 3, 5, 1 }, /* as long as version 1 */
    { "write of another length", write_noted, 4, 3, 1 },
    { "write that was invalidated meanwhile", write_echoed, 5, 5, 1 },
    { "drop", drop, 3, 0, 1 },
    { "invalidate", invalidate, 3, 0, 1 },
    { "fill of a session just dropped", fill, 3, 5, 5 },
};
#define OPS (sizeof ops / sizeof ops[0])

static void write_version(struct session_cache *c, uint32_t session, uint32_t version)
{
    char id[40], text[24000];
    uint64_t epoch = session_cache_epoch(c, world_id(session, id));
    session_cache_note_write(c, id, world_doc(session, version, text), 0, epoch);
}

static int fill_crowd(struct session_cache *c)
{
    char id[40], text[24000];
    for (uint32_t i = 0; i < CROWD + 20; i++) { /* the first ones again: the operations are about some of them */
        uint32_t session = i % CROWD;
        uint64_t epoch = session_cache_epoch(c, world_id(session, id));
        session_cache_put(c, id, world_doc(session, 1, text), 0, epoch);
    }
    return (int)entries(c);
}

/* Nothing torn, nothing from nowhere; returns how many are found. `least` is the oldest that session may show. */
static int look_at_crowd(struct session_cache *c, uint32_t session, uint32_t least)
{
    char id[40];
    int found = 0;
    for (uint32_t i = 0; i <= CROWD; i++) {
        if (!get(c, world_id(i, id))) continue;
        uint32_t version = world_version(i, buf_bytes(&doc));
        assert_true(version >= 1);
        if (i == session)
            assert_true(version >= least);
        else if (i < CROWD)
            assert_int_equal(version, 1);
        found++;
    }
    return found;
}

/* All chunks and entries are where they can be used. */
static void assert_no_leak(struct session_cache *c)
{
    struct session_cache_stats stats;
    char id[40];
    static char large[SESSION_CACHE_MOST_DOC_BYTES];
    for (uint32_t i = 0; i < WORLD_SESSIONS; i++) session_cache_drop(c, world_id(i, id));
    session_cache_stats(c, &stats);
    assert_int_equal(stats.entries, 0);
    assert_int_equal(stats.bytes, 0);
    session_cache_put(c, "large", (struct bytes){ large, sizeof large }, 0, session_cache_epoch(c, "large"));
    assert_true(get(c, "large"));
    for (uint32_t i = 0; i < CROWD; i++) put(c, world_id(i, id), "x");
    assert_true(entries(c) >= CROWD);
}

/* A child that is stopped by a signal of its own before each run of the operation: Redis has answered, the cache is yet
 * to be told. Its clock stands still, since reading the real one starts again whenever a tick of it came between, and
 * single steps are slower than that. */
static pid_t start_traced(const struct op *op)
{
    static char text[24000];
    char id[40];
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        struct session_cache *c = session_cache_open(dir, ONE_SET, NULL);
        struct bytes version = world_doc(op->session, op->version, text);
        world_id(op->session, id);
        clock_set(clock_wall_ms(), clock_mono_ms());
        if (c == NULL || ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(1);
        for (;;) {
            uint64_t epoch = session_cache_epoch(c, id);
            raise(SIGSTOP);
            op->run(c, id, version, epoch);
        }
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSTOPPED(status)) {
        print_message("           no ptrace here\n");
        skip();
    }
    return pid;
}

/* One instruction; false when the child is back at its own stop. */
static bool step(pid_t pid)
{
    int status;
    assert_int_equal(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSTOPPED(status));
    return WSTOPSIG(status) != SIGSTOP;
}

static void run_to_stop(pid_t pid)
{
    int status;
    assert_int_equal(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
}

static void kill_traced(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

#define MOST_LOST 3 /* the copy under the operation, and two that are evicted to make room for it */

/* The files as they stand, copied elsewhere: there, nobody who had them lives. So each instruction is a death. */
static void look_at_copy_of_the_dead(const struct op *op, const void *const from[2], void *const to[2], int before,
                                     bool thoroughly)
{
    memcpy(to[0], from[0], CONTROL_BYTES);
    memcpy(to[1], from[1], TABLE_BYTES);
    struct session_cache *c = open_in(dir2, ONE_SET);
    int found = look_at_crowd(c, op->session, op->least);
    assert_true(found >= before - MOST_LOST);
    write_version(c, op->session, 9);
    assert_true(look_at_crowd(c, op->session, 9) >= before - MOST_LOST);
    if (thoroughly) assert_no_leak(c);
    session_cache_close(c);
}

static void death_at_any_instruction_costs_at_most_the_copy_being_written(void **state)
{
    (void)state;
    for (size_t o = 0; o < OPS; o++) {
        struct session_cache *c = open_cache(ONE_SET), *there = open_in(dir2, ONE_SET);
        const void *from[2] = { map(path_of(dir, "session_cache"), CONTROL_BYTES),
                                map(path_of(dir, "session_cache-1"), TABLE_BYTES) };
        void *to[2] = { map(path_of(dir2, "session_cache"), CONTROL_BYTES),
                        map(path_of(dir2, "session_cache-1"), TABLE_BYTES) };
        session_cache_close(there);
        int64_t wall_ms = clock_wall_ms(), mono_ms = clock_mono_ms();
        clock_set(wall_ms, mono_ms); /* one time for all: copies of one session differ in nothing but their version */
        int before = fill_crowd(c), instructions = 0, states = 0;
        char id[40], *seen = mem_alloc(TABLE_BYTES);
        if (ops[o].least > 1) session_cache_drop(c, world_id(ops[o].session, id));
        pid_t pid = start_traced(&ops[o]);
        while (step(pid)) {
            instructions++;
            if (memcmp(seen, from[1], TABLE_BYTES) == 0) continue; /* it would be the same death */
            memcpy(seen, from[1], TABLE_BYTES);
            look_at_copy_of_the_dead(&ops[o], from, to, before, states++ % 16 == 0);
        }
        kill_traced(pid);
        print_message("           %s: %d instructions, %d states left by death\n", ops[o].name, instructions, states);
        assert_true(states >= 3);
        free(seen);
        for (int i = 0; i < 2; i++) {
            munmap((void *)from[i], i ? TABLE_BYTES : CONTROL_BYTES);
            munmap(to[i], i ? TABLE_BYTES : CONTROL_BYTES);
        }
        session_cache_close(c);
        clean(NULL);
    }
}

/* As above with real deaths: the survivor goes on in the same files. */
static void the_survivor_of_a_killed_writer_goes_on_at_once(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    for (int i = 0; i < 100; i++) {
        const struct op *op = &ops[(size_t)i % OPS];
        int before = fill_crowd(c);
        pid_t pid = start_traced(op);
        for (int n = 0, most = rand() % 3000; n < most && step(pid);) n++;
        kill_traced(pid);
        assert_true(look_at_crowd(c, op->session, 1) >= before - MOST_LOST);
        write_version(c, op->session, 9);
        look_at_crowd(c, op->session, 9);
        if (i % 10 == 0) assert_no_leak(c);
    }
    session_cache_close(c);
}

/* A writer is stopped at an instruction, another one writes something newer and acknowledges it, the first goes on. Who
 * of the two wrote to Redis last the cache cannot know: it has the acknowledged version or none. */
static void a_writer_that_was_stopped_anywhere_brings_nothing_old_back(void **state)
{
    (void)state;
    struct session_cache *c = open_cache(ONE_SET);
    int stops = 0;
    for (size_t o = 0; o < OPS; o++) {
        bool running = true;
        fill_crowd(c);
        pid_t pid = start_traced(&ops[o]);
        for (int n = 0; running; n += 1 + n / 20) {
            fill_crowd(c);
            for (int k = 0; k < n && running; k++) running = step(pid);
            if (!running) break;
            write_version(c, ops[o].session, 9);
            look_at_crowd(c, ops[o].session, 9);
            run_to_stop(pid);
            look_at_crowd(c, ops[o].session, 9);
            stops++;
        }
        kill_traced(pid);
    }
    print_message("           stopped at %d instructions\n", stops);
    assert_true(stops > 200);
    session_cache_close(c);
}

/* --- many processes ------------------------------------------------------------------------------------------------
 */

static void work(struct world *w, uint32_t seed)
{
    struct session_cache *c = session_cache_open(dir, ONE_SET, NULL);
    struct buf own = BUF_INIT(100000);
    if (c == NULL) _exit(1);
    for (;;) world_step(w, c, world_dice(&seed), &own);
}

static void assert_world_is_well(const struct world *w)
{
    assert_int_equal(w->torn, 0);
    assert_int_equal(w->stale, 0);
}

static struct world *new_world(void)
{
    struct world *w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int s = 0; s < WORLD_SESSIONS; s++) w->redis[s] = 1;
    return w;
}

static void processes_that_are_killed_at_random_leave_nothing_torn_or_old(void **state)
{
    (void)state;
    struct world *w = new_world();
    pid_t pid[4];
    uint32_t seed = 1;
    int deaths = 0;
    for (int i = 0; i < 4; i++)
        if ((pid[i] = fork()) == 0) work(w, seed + (uint32_t)i);
    for (int64_t end_ms = clock_mono_ms() + 3000; clock_mono_ms() < end_ms; deaths++) {
        usleep(1000 + world_dice(&seed) % 4000);
        pid_t *victim = &pid[deaths % 4];
        kill(*victim, SIGKILL);
        waitpid(*victim, NULL, 0);
        if ((*victim = fork()) == 0) work(w, world_dice(&seed));
    }
    for (int i = 0; i < 4; i++) {
        kill(pid[i], SIGKILL);
        waitpid(pid[i], NULL, 0);
    }
    print_message("           %d processes killed, %llu copies read, %llu of them proven\n", deaths + 4,
                  (unsigned long long)w->hits, (unsigned long long)w->proven);
    assert_world_is_well(w);
    assert_true(w->hits > 10000);
    struct session_cache *c = open_cache(ONE_SET);
    assert_no_leak(c);
    session_cache_close(c);
    munmap(w, sizeof *w);
}

static void whoever_comes_first_makes_the_files(void **state)
{
    (void)state;
    for (int round = 0; round < 30; round++) {
        pid_t pid[6];
        for (int i = 0; i < 6; i++) {
            if ((pid[i] = fork()) != 0) continue;
            struct session_cache *c = session_cache_open(dir, ONE_SET, NULL);
            char id[40];
            if (c == NULL) _exit(1);
            note_write(c, world_id((uint32_t)i, id), "x");
            session_cache_close(c);
            _exit(0);
        }
        for (int i = 0, status; i < 6; i++) {
            waitpid(pid[i], &status, 0);
            assert_int_equal(status, 0);
        }
        struct session_cache *c = open_cache(ONE_SET);
        assert_true(is_on(c));
        session_cache_close(c);
        remove_files(dir);
    }
}

#define TEST(f) cmocka_unit_test_teardown(f, clean)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_was_filled_is_found_by_all_with_its_times),
        TEST(documents_of_every_length_come_back_byte_for_byte),
        TEST(a_buffer_too_small_gets_nothing),
        TEST(an_expired_copy_is_never_returned),
        TEST(what_is_read_stays_when_room_is_short),
        TEST(a_fill_that_was_overtaken_is_ignored),
        TEST(of_two_writes_in_unknown_order_none_is_kept),
        TEST(a_write_that_was_only_invalidated_meanwhile_leaves_an_unproven_copy),
        TEST(a_write_beside_an_invalidation_and_another_write_leaves_none),
        TEST(of_a_new_table_no_epoch_of_the_old_one_says_anything),
        TEST(an_invalidated_copy_stays_unproven_until_it_is_filled_again),
        TEST(a_change_of_one_session_leaves_the_others_alone),
        TEST(files_are_private_and_reserved),
        TEST(of_a_large_table_only_what_is_touched_is_in_memory),
        TEST(a_new_size_is_followed_by_all),
        TEST(without_room_all_goes_on_without_cache_until_there_is),
        TEST(beside_processes_of_another_layout_there_is_no_cache),
        TEST(after_a_time_without_processes_copies_are_unproven_and_after_a_reboot_gone),
        TEST(a_file_of_something_else_is_refused),
        TEST(a_folder_whose_name_is_too_long_is_refused),
        TEST(a_copy_whose_checksum_does_not_fit_is_no_copy),
        TEST(who_finds_the_set_owned_waits_for_nobody_and_leaves_nothing_old),
        TEST(a_place_taken_over_does_not_make_the_dead_owner_live),
        TEST(death_at_any_instruction_costs_at_most_the_copy_being_written),
        TEST(the_survivor_of_a_killed_writer_goes_on_at_once),
        TEST(a_writer_that_was_stopped_anywhere_brings_nothing_old_back),
        TEST(processes_that_are_killed_at_random_leave_nothing_torn_or_old),
        TEST(whoever_comes_first_makes_the_files),
    };
    return cmocka_run_group_tests(tests, make_dirs, remove_dirs);
}
