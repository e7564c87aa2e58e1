/* refuge_cases.h: a refuge in a folder of the test's own. */
#ifndef HYPERPAGE_REFUGE_CASES_H
#define HYPERPAGE_REFUGE_CASES_H

#include "store_refuge.h"

#include "clock.h"
#include "test.h"

#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LONG_MS 3600000

static char dir[64];
static struct store_embedded *embedded;
static struct refuge *refuge;
static struct refuge_result res;
static struct err err;

static int64_t soon(void)
{
    return clock_mono_ms() + 5000;
}

static void must(bool ok)
{
    if (!ok) print_error("%s\n", err.text);
    assert_true(ok);
}

static int64_t rows_added; /* as refuge_options.adding was told */

static void count_adding(void *ctx, int64_t rows)
{
    (void)ctx;
    rows_added += rows;
}

static void refuge_leave(void)
{
    refuge_close(refuge);
    store_embedded_close(embedded);
    refuge = NULL;
    embedded = NULL;
}

static void refuge_reopen(void)
{
    refuge_leave();
    embedded = store_embedded_open(&(struct store_embedded_options){ .dir = dir }, &err);
    must(embedded != NULL);
    refuge = refuge_open(&(struct refuge_options){ .embedded = embedded, .adding = count_adding }, &err);
    must(refuge != NULL);
}

static int refuge_begin(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_refuge.XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    refuge_reopen();
    rows_added = 0;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *where)
{
    (void)st, (void)what, (void)where;
    return remove(path);
}

static int refuge_end(void **state)
{
    (void)state;
    clock_set(-1, -1);
    refuge_leave();
    return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

#define TERMS(life_ms) (&(struct store_terms){ .ttl_ms = (life_ms) })

/* --- operations that must succeed --- */

static void create_(const char *id, const char *doc)
{
    must(refuge_create(refuge, id, bytes_of(doc), TERMS(LONG_MS), soon(), &res, &err));
}

static enum store_verdict write_text(void *ctx, struct bytes doc, struct buf *out)
{
    (void)doc;
    buf_puts(out, ctx);
    return STORE_WRITE;
}

/* The row, or else `base`, becomes `doc`. */
static void update_(const char *id, const char *base, const char *doc)
{
    struct refuge_copy copy = { bytes_of(base), clock_wall_ms() + LONG_MS, NULL };
    must(refuge_update(refuge, id, base ? &copy : NULL, write_text, (char *)(uintptr_t)doc, TERMS(LONG_MS), soon(),
                       &res, &err));
}

static void delete_(const char *id, const char *base)
{
    struct refuge_copy copy = { bytes_of(base), clock_wall_ms() + LONG_MS, NULL };
    must(refuge_delete(refuge, id, base ? &copy : NULL, soon(), &res, &err));
}

static int64_t rows_now(void)
{
    int64_t rows;
    must(refuge_count(refuge, NULL, NULL, soon(), &rows, &err));
    return rows;
}

#endif
