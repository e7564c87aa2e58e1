/* ctl_move.c: sessions out of the place in use, and into it, as lines of text (session_line): between the embedded
 * store and Redis, and from one Redis to another. */
#include "ctl.h"

#include "clock.h"
#include "life.h"
#include "mem.h"
#include "rounds.h"
#include "session_line.h"
#include "task.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEP_MS      5000
#define AT_ONCE      32 /* lines that are taken in side by side */
#define MOST_TOLD    20 /* refused lines; the rest is counted */
#define MOST_RETRIES 8  /* of a session that comes and goes */

static bool is_dash(const char *path)
{
    return strcmp(path, "-") == 0;
}

/* --- export --- */

struct export
{
    FILE *to;
    int write_errno; /* of the first write that failed; 0: none has */
    struct buf line;
    int64_t sessions, skipped;
};

static void write_found(void *ctx, const struct store_found *f)
{
    struct export *ex = ctx;
    if (!f->is_text || !session_line_fits(f->id, f->doc)) {
        ex->skipped++;
        return;
    }
    buf_reset(&ex->line);
    session_line_write(f->id, f->doc, f->expires_at_ms, &ex->line);
    bool all = fwrite(buf_text(&ex->line), 1, ex->line.len, ex->to) == ex->line.len;
    if (!all && ex->write_errno == 0) ex->write_errno = errno;
    ex->sessions++;
}

static enum ctl_exit export_all(struct ctl *c, struct store *st, struct export *ex)
{
    struct store_scan scan = { .each = write_found, .ctx = ex };
    struct err e;
    while (!scan.done && ex->write_errno == 0) {
        if (clock_mono_ms() >= c->deadline_ms) return ctl_fail(CTL_TIMED_OUT, "not within the --timeout");
        if (!store_scan(st, &scan, ctl_step_deadline(c, STEP_MS), &e)) return ctl_failed(c, &e);
    }
    if (ex->write_errno == 0 && fflush(ex->to) != 0) ex->write_errno = errno;
    if (ex->write_errno != 0)
        return ctl_fail(CTL_NOT_SO, "%s: cannot be written: %s", c->word[0], strerror(ex->write_errno));
    return CTL_OK;
}

/* A file is replaced; a device, a pipe or a link would be gone afterwards. */
static enum ctl_exit check_target(const char *path)
{
    struct stat st;
    if (lstat(path, &st) != 0 || S_ISREG(st.st_mode)) return CTL_OK; /* what else is wrong, its .part meets too */
    return ctl_fail(CTL_USAGE, "%s: is there and no regular file: allowed is a file, or - for standard output", path);
}

/* Ours alone while it is locked. One that a killed export has left is used again; a name that the other export has just
 * taken away from what was opened is as good as locked. -1: it has been said. */
static int open_part(const char *path)
{
    struct stat opened, named;
    bool locked = false, ours = false;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    int error = fd < 0 ? errno : 0;
    if (fd >= 0) {
        locked = flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &opened) == 0 && lstat(path, &named) == 0 &&
                 opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
        ours = locked && S_ISREG(opened.st_mode) && opened.st_uid == geteuid();
    }
    if (ours && (fchmod(fd, 0600) != 0 || ftruncate(fd, 0) != 0)) error = errno;
    if (ours && error == 0) return fd;
    ctl_fail(CTL_NOT_SO, "%s: %s", path,
             error != 0 ? strerror(error)
             : locked   ? "is there and no file of this user"
                        : "another export writes it");
    if (fd >= 0) close(fd);
    return -1;
}

/* A name is on the disk once its folder is; some file systems cannot be told (EINVAL). */
static bool sync_folder_of(const char *path)
{
    struct buf folder = BUF_INIT(8192);
    const char *slash = strrchr(path, '/');
    if (slash != NULL)
        buf_append(&folder, path, (size_t)(slash - path) + 1);
    else
        buf_puts(&folder, ".");
    int fd = open(buf_text(&folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    int error = errno;
    if (fd >= 0) close(fd);
    buf_done(&folder);
    errno = error;
    return ok;
}

/* Ids are keys to sessions: nobody else reads the file. It has its name once it is whole. */
static enum ctl_exit export_to_file(struct ctl *c, struct store *st, struct export *ex, const char *path)
{
    struct buf part = BUF_INIT(8192);
    bool renamed = false;
    int fd = -1;
    enum ctl_exit code = check_target(path);
    buf_printf(&part, "%s.part", path);
    if (code == CTL_OK && (fd = open_part(buf_text(&part))) < 0) code = CTL_NOT_SO;
    if (code != CTL_OK) goto out;
    ex->to = fdopen(fd, "w");
    if (ex->to == NULL)
        code = ctl_fail(CTL_NOT_SO, "%s: %s", buf_text(&part), strerror(errno));
    else
        code = export_all(c, st, ex);
    if (code == CTL_OK) {
        renamed = fsync(fd) == 0 && rename(buf_text(&part), path) == 0;
        if (!renamed || !sync_folder_of(path)) code = ctl_fail(CTL_NOT_SO, "%s: %s", path, strerror(errno));
    }
    if (!renamed) unlink(buf_text(&part)); /* while it is locked */
    if (ex->to != NULL)
        fclose(ex->to);
    else
        close(fd);
out:
    buf_done(&part);
    return code;
}

enum ctl_exit store_export(struct ctl *c)
{
    struct export ex = { .line = BUF_INIT(SIZE_MAX / 2) };
    enum ctl_exit code = CTL_OK;
    struct store *st = ctl_open_store(c, NULL, &code);
    if (st == NULL) return code;
    if (is_dash(c->word[0])) {
        c->report.to = stderr;
        ex.to = stdout;
        code = export_all(c, st, &ex);
    } else {
        code = export_to_file(c, st, &ex, c->word[0]);
    }
    if (code == CTL_OK) {
        report_number(&c->report, "sessions", ex.sessions);
        report_number(&c->report, "skipped", ex.skipped);
        if (ex.skipped > 0)
            code = ctl_fail(CTL_NOT_SO, "%" PRId64 " keys are no sessions: no JSON object, or not under an id",
                            ex.skipped);
    }
    buf_done(&ex.line);
    store_close(st);
    return code;
}

/* --- import: what becomes of a line --- */

enum fate { CREATED, REPLACED, SAME, KEPT, GONE, EXPIRED, REFUSED, FATES };
static const char *const fate_names[FATES] = { "created", "replaced", "same", "kept", "gone", "expired", "refused" };

struct import {
    struct ctl *c;
    struct store *store;
    int from_fd;
    struct life_rules life;
    char chunk[64 * 1024]; /* what was read, and how far it is used */
    size_t read, used;
    int64_t lines, counted[FATES];
    enum ctl_exit code; /* other than CTL_OK: no more lines */
};

struct arrival {
    struct import *im;
    int64_t number; /* of the line, from 1 */
    struct buf text;
    struct session_line line;
    struct store_terms terms;
    enum fate fate; /* as its edit last saw it */
};

static void refuse(struct arrival *a, const char *where, const char *why)
{
    a->fate = REFUSED;
    if (a->im->counted[REFUSED] < MOST_TOLD)
        ctl_fail(CTL_NOT_SO, "line %" PRId64 ": %s%s%s", a->number, where, where[0] != '\0' ? " " : "", why);
}

/* When a document was last written, as it says itself; -1: it does not. */
static int64_t written_ms(struct bytes doc)
{
    struct session_facts facts;
    int64_t updated_ms = -1, active_ms = -1;
    if (!session_facts(doc, &facts)) return -1;
    if (!json_iso_time(facts.updated, &updated_ms)) updated_ms = -1;
    if (!json_iso_time(facts.last_activity, &active_ms)) active_ms = -1;
    return updated_ms > active_ms ? updated_ms : active_ms;
}

/* What is there gives way to what is known to be newer, and to nothing else. */
static enum fate judge(const struct arrival *a, struct bytes stored)
{
    struct bytes ours = buf_bytes(&a->line.doc);
    int64_t theirs_ms = written_ms(stored);
    if (bytes_equal(ours, stored)) return SAME;
    if (a->im->c->flag[CTL_OVERWRITE] != NULL) return REPLACED;
    return theirs_ms >= 0 && written_ms(ours) > theirs_ms ? REPLACED : KEPT;
}

static enum store_verdict replace(void *ctx, struct bytes stored, struct buf *out)
{
    struct arrival *a = ctx;
    struct session_facts facts;
    a->fate = judge(a, stored);
    if (a->fate != REPLACED) return STORE_KEEP;
    a->terms.was_user[0] = '\0';
    if (session_facts(stored, &facts)) session_user(facts.user_id, a->terms.was_user, sizeof a->terms.was_user);
    buf_add(out, buf_bytes(&a->line.doc));
    return STORE_WRITE;
}

/* How long it may live yet, and whose it is. False: a->fate says what it is instead. */
static bool set_terms(struct arrival *a)
{
    const struct config *cfg = a->im->c->config;
    struct session_facts facts;
    int64_t now_ms = clock_wall_ms(), most_ms = cfg->session_max_ttl_seconds * 1000;
    if (most_ms < a->im->life.ttl_ms) most_ms = a->im->life.ttl_ms;
    int64_t life_ms = a->line.expires_at_ms != 0 ? a->line.expires_at_ms - now_ms : a->im->life.ttl_ms;
    if (life_ms > most_ms) {
        refuse(a, "/expiresAt", "is further away than SESSION_MAX_TTL_SECONDS");
        return false;
    }
    a->terms = (struct store_terms){ .announce = true, .strict = true };
    session_facts(buf_bytes(&a->line.doc), &facts);
    session_user(facts.user_id, a->terms.user, sizeof a->terms.user);
    int64_t left_ms = life_left_ms(&a->im->life, &facts, now_ms);
    a->terms.ttl_ms = life_ms < left_ms ? life_ms : left_ms;
    a->terms.most_ms = a->im->c->flag[CTL_OVERWRITE] != NULL ? a->terms.ttl_ms : left_ms == INT64_MAX ? 0 : left_ms;
    a->fate = EXPIRED;
    return a->terms.ttl_ms > 0;
}

/* What would become of it. */
static bool look(struct arrival *a, struct err *e)
{
    struct import *im = a->im;
    struct store_result res;
    struct buf stored = BUF_INIT(SIZE_MAX / 2);
    bool gone = false;
    bool ok = store_get(im->store, a->line.id, 0, ctl_step_deadline(im->c, STEP_MS), &stored, &res, e);
    if (ok && !res.found) ok = store_is_gone(im->store, a->line.id, ctl_step_deadline(im->c, STEP_MS), &gone, e);
    if (ok) a->fate = res.found ? judge(a, buf_bytes(&stored)) : gone ? GONE : CREATED;
    buf_done(&stored);
    return ok;
}

static bool put(struct arrival *a, struct err *e)
{
    struct import *im = a->im;
    struct store_result res;
    for (int i = 0; i < MOST_RETRIES; i++) {
        if (!store_create(im->store, a->line.id, buf_bytes(&a->line.doc), &a->terms, ctl_step_deadline(im->c, STEP_MS),
                          &res, e))
            return false;
        a->fate = res.changed ? CREATED : GONE;
        if (res.changed || res.gone) return true;
        if (!store_update(im->store, a->line.id, replace, a, &a->terms, ctl_step_deadline(im->c, STEP_MS), &res, e))
            return false;
        if (res.found) return true;
    }
    return err_set(e, ERR_UNAVAILABLE, "line %" PRId64 ": the session comes and goes", a->number);
}

/* A task. */
static void take_in(void *arg)
{
    struct arrival *a = arg;
    struct import *im = a->im;
    struct json_fault fault;
    struct err e = { .kind = ERR_NONE };
    bool ok = true;
    if (buf_overflowed(&a->text))
        refuse(a, "", "longer than a session of SESSION_MAX_BYTES can be");
    else if (!session_line_read(buf_bytes(&a->text), &a->line, &fault))
        refuse(a, fault.pointer, fault.reason);
    else if (set_terms(a))
        ok = im->c->flag[CTL_DRY_RUN] != NULL ? look(a, &e) : put(a, &e);
    if (!ok && e.kind == ERR_CORRUPT)
        refuse(a, "/id", "is that of a key of another type");
    else if (!ok && im->code == CTL_OK)
        im->code = ctl_failed(im->c, &e);
    if (ok || e.kind == ERR_CORRUPT) im->counted[a->fate]++;
}

/* --- import: lines --- */

/* Reads on, not waiting longer for whoever writes than --timeout says. False: there is no more, or im->code says why.
 */
static bool next_chunk(struct import *im)
{
    struct pollfd in = { .fd = im->from_fd, .events = POLLIN };
    ssize_t n = -1;
    while (n < 0 && im->code == CTL_OK) {
        int64_t left_ms = im->c->deadline_ms - clock_mono_ms();
        int ready = poll(&in, 1, im->c->deadline_ms == CLOCK_NEVER ? -1 : left_ms > 0 ? (int)left_ms : 0);
        if (ready > 0) n = read(im->from_fd, im->chunk, sizeof im->chunk);
        if (ready == 0)
            im->code = ctl_fail(CTL_TIMED_OUT, "not within the --timeout");
        else if (n < 0 && errno != EINTR && errno != EAGAIN)
            im->code = ctl_fail(CTL_NOT_SO, "%s: cannot be read: %s", im->c->word[0], strerror(errno));
    }
    im->used = 0;
    im->read = n > 0 ? (size_t)n : 0;
    return n > 0;
}

/* The next line without its end; one that is too long is passed over and leaves `line` overflowed. False: there is none
 * left, or im->code says why. */
static bool next_line(struct import *im, struct buf *line)
{
    bool any = false, ended = false;
    buf_reset(line);
    while (!ended && (im->used < im->read || next_chunk(im))) {
        const char *at = im->chunk + im->used, *end = memchr(at, '\n', im->read - im->used);
        size_t n = end != NULL ? (size_t)(end - at) : im->read - im->used;
        ended = end != NULL;
        im->used += n + ended;
        buf_append(line, at, n);
        any = true;
    }
    return any && im->code == CTL_OK;
}

/* Reading may wait for whoever writes the lines, so nothing is under way meanwhile. */
static void import_lines(struct import *im, struct arrival *arrivals, struct pollset *ps)
{
    size_t count = AT_ONCE;
    while (count == AT_ONCE && im->code == CTL_OK) {
        for (count = 0; count < AT_ONCE && next_line(im, &arrivals[count].text); count++) {
            arrivals[count].number = ++im->lines;
            task_start(take_in, &arrivals[count]);
        }
        rounds_run(ps, im->store);
        if (im->code == CTL_OK && clock_mono_ms() >= im->c->deadline_ms)
            im->code = ctl_fail(CTL_TIMED_OUT, "not within the --timeout");
    }
}

static void tell_import(struct import *im)
{
    struct report *r = &im->c->report;
    report_flag(r, "dryRun", im->c->flag[CTL_DRY_RUN] != NULL);
    report_number(r, "lines", im->lines);
    for (int f = 0; f < FATES; f++) report_number(r, fate_names[f], im->counted[f]);
    if (im->code != CTL_OK && im->lines > 0)
        ctl_fail(im->code, "stopped near line %" PRId64 "; the same call again goes on", im->lines);
    else if (im->counted[REFUSED] > 0)
        im->code = ctl_fail(CTL_NOT_SO, "%" PRId64 " lines refused, the rest is in", im->counted[REFUSED]);
}

static void import_into(struct import *im, struct pollset *ps)
{
    const size_t most = (size_t)im->c->config->session_max_bytes;
    struct arrival *arrivals = mem_alloc(AT_ONCE * sizeof *arrivals);
    for (int i = 0; i < AT_ONCE; i++)
        arrivals[i] =
            (struct arrival){ .im = im, .text = BUF_INIT(SESSION_LINE_MOST(most)), .line = { .doc = BUF_INIT(most) } };
    import_lines(im, arrivals, ps);
    tell_import(im);
    for (int i = 0; i < AT_ONCE; i++) {
        buf_done(&arrivals[i].text);
        buf_done(&arrivals[i].line.doc);
    }
    free(arrivals);
}

enum ctl_exit store_import(struct ctl *c)
{
    const struct config *cfg = c->config;
    struct import *im = mem_alloc(sizeof *im);
    struct pollset *ps = NULL;
    struct err e;
    im->c = c;
    im->life = (struct life_rules){ .ttl_ms = cfg->session_default_ttl_seconds * 1000,
                                    .absolute_ms = cfg->session_absolute_ttl_seconds * 1000 };
    /* A pipe is not waited for here, but with its lines. */
    im->from_fd = is_dash(c->word[0]) ? STDIN_FILENO : open(c->word[0], O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (im->from_fd < 0) im->code = ctl_fail(CTL_USAGE, "%s: %s", c->word[0], strerror(errno));
    if (im->code == CTL_OK && (ps = pollset_new(&e)) == NULL) im->code = ctl_failed(c, &e);
    if (im->code == CTL_OK && cfg->redis_url[0] == '\0' && ctl_home_of_pool(c) == CTL_HOME_REDIS)
        im->code =
            ctl_fail(CTL_NOT_SO,
                     "the pool that runs here keeps its sessions in Redis, and would take these there: stop it first");
    if (im->code == CTL_OK) im->store = ctl_open_store(c, ps, &im->code);
    /* Once for all, before the first lines are read. */
    if (im->store != NULL && store_uses(im->store, STORE_REDIS) &&
        !store_check(im->store, STORE_REDIS, ctl_step_deadline(c, STEP_MS), &e))
        im->code = ctl_failed(c, &e);
    if (im->code == CTL_OK) import_into(im, ps);
    enum ctl_exit code = im->code;
    store_close(im->store);
    pollset_free(ps);
    if (im->from_fd > STDIN_FILENO) close(im->from_fd);
    free(im);
    return code;
}
