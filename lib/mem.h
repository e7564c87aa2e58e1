/* mem.h: allocation that ends the process instead of returning NULL.
 * A worker out of memory has nothing useful left to say; the pool forks a replacement. */
#ifndef HYPERPAGE_MEM_H
#define HYPERPAGE_MEM_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void *mem_or_die(void *p)
{
    if (p == NULL) {
        fputs("out of memory\n", stderr);
        abort();
    }
    return p;
}

/* Zeroed, so that a forgotten field is NULL or 0 and not a stale byte. */
static inline void *mem_alloc(size_t bytes)
{
    return mem_or_die(calloc(1, bytes ? bytes : 1));
}

static inline void *mem_resize(void *p, size_t bytes)
{
    return mem_or_die(realloc(p, bytes ? bytes : 1));
}

static inline char *mem_strdup(const char *s)
{
    return mem_or_die(strdup(s));
}

#endif
