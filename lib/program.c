#include "program.h"

#include "folder.h"
#include "log.h"

#include <stdio.h>
#include <string.h>

bool program_tells(const struct program *p, const struct config_call *call, int *exit_code)
{
    struct buf text = BUF_INIT(256 * 1024);
    if (call->version)
        buf_printf(&text, "%s " HYPERPAGE_VERSION "\n", p->name);
    else if (call->help)
        config_help(p->name, p->summary, &text);
    else if (call->reference)
        config_reference(&text);
    else
        return false;
    *exit_code = fputs(buf_text(&text), stdout) >= 0 && fflush(stdout) == 0 ? 0 : 1;
    buf_done(&text);
    return true;
}

int program_refuse(const struct program *p, const struct err *e)
{
    fprintf(stderr, "%s: %s\n", p->name, e->text);
    folder_leave_nothing();
    return 2;
}

void program_log_near_misses(const struct buf *misses)
{
    for (const char *p = buf_text(misses); *p != '\0'; p += strcspn(p, "\n") + 1) {
        size_t name = strcspn(p, " "), near = strcspn(p, "\n") - name - 1;
        log_warn("environment variable is no option, a near miss: name=%.*s near=%.*s", (int)name, p, (int)near,
                 p + name + 1);
    }
}
