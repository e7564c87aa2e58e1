/* err.h: an error as a value: a kind that decides what happens, and a text for the log. */
#ifndef HYPERPAGE_ERR_H
#define HYPERPAGE_ERR_H

#include <stdbool.h>

enum err_kind {
    ERR_NONE,
    ERR_INPUT,       /* what the caller was given is wrong */
    ERR_UNAVAILABLE, /* nobody could answer in time; trying later may help */
    ERR_FULL,        /* a limit set by the operator is reached */
    ERR_CORRUPT,     /* what is stored is not what we store; it is kept as it is */
    ERR_INTERNAL     /* our fault or the machine's */
};

struct err {
    enum err_kind kind;
    bool away;      /* with ERR_UNAVAILABLE: a server serves nobody now, as opposed to refusing or delaying just this */
    char text[200]; /* one line, no newline, cut if longer */
};

/* Always false, so that a failing function can end in `return err_set(e, ...)`. `e` may be NULL. */
bool err_set(struct err *e, enum err_kind kind, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same with ERR_UNAVAILABLE and `away`. */
bool err_set_away(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
