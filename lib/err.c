#include "err.h"

#include <stdarg.h>
#include <stdio.h>

bool err_set(struct err *e, enum err_kind kind, const char *fmt, ...)
{
    if (e == NULL) return false;
    e->kind = kind;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    for (char *c = e->text; *c != '\0'; c++) /* a value from outside must not make it two lines */
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return false;
}
