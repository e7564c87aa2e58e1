#include "err.h"

#include <stdarg.h>
#include <stdio.h>

static bool set(struct err *e, enum err_kind kind, bool away, const char *fmt, va_list ap)
{
    if (e == NULL) return false;
    e->kind = kind;
    e->away = away;
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    for (char *c = e->text; *c != '\0'; c++) /* a value from outside must not make it two lines */
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return false;
}

bool err_set(struct err *e, enum err_kind kind, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    set(e, kind, false, fmt, ap);
    va_end(ap);
    return false;
}

bool err_set_away(struct err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    set(e, ERR_UNAVAILABLE, true, fmt, ap);
    va_end(ap);
    return false;
}
