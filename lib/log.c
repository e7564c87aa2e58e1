#include "log.h"

#include "buf.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct {
    const char *role;
    const char *path;
    enum log_level level;
    enum log_format format;
    int fd;
} lg = { .role = "-", .path = "", .level = LOG_INFO, .fd = STDERR_FILENO };

static const char *const level_names[] = { "error", "warn", "info", "debug" };

bool log_open(const char *role, enum log_level level, enum log_format format, const char *path, struct err *e)
{
    int fd = STDERR_FILENO;
    if (path[0] != '\0') {
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
        if (fd < 0)
            return err_set(e, ERR_INPUT, "LOG_FILE=%s: cannot be opened for writing: %s", path, strerror(errno));
    }
    if (lg.fd > STDERR_FILENO) close(lg.fd);
    lg.role = role;
    lg.level = level;
    lg.format = format;
    lg.path = path;
    lg.fd = fd;
    return true;
}

void log_role(const char *role)
{
    lg.role = role;
}

bool log_reopen(struct err *e)
{
    return lg.path[0] == '\0' || log_open(lg.role, lg.level, lg.format, lg.path, e);
}

bool log_enabled(enum log_level level)
{
    return level <= lg.level;
}

/* Text form: what a terminal or a line parser could trip over is shown as \xNN. */
static void add_escaped(struct buf *line, struct bytes s)
{
    for (size_t i = 0; i < s.len;) {
        unsigned char c = (unsigned char)s.at[i];
        size_t n = utf8_sequence(s.at + i, s.len - i);
        if (n == 0 || c < 0x20 || c == 0x7f) {
            buf_printf(line, "\\x%02x", c);
            i++;
        } else {
            buf_append(line, s.at + i, n);
            i += n;
        }
    }
}

/* Splits "key=value " or "key=\"value\" " off the front of *rest; false when there is no pair left. */
static bool next_pair(const char **rest, struct bytes *key, struct bytes *value)
{
    const char *p = *rest + strspn(*rest, " ");
    const char *eq = strchr(p, '=');
    if (eq == NULL) return false;
    *key = (struct bytes){ p, (size_t)(eq - p) };
    const char *v = eq + 1;
    if (*v == '"') {
        const char *end = strrchr(++v, '"'); /* a quoted value may hold quotes; the closing one is before " key=" */
        for (const char *q = v; (q = strchr(q, '"')) != NULL; q++) {
            size_t name = strspn(q + 1, " ") ? strcspn(q + 2, "= ") : 0;
            if (q[1] == '\0' || (name > 0 && q[2 + name] == '=')) {
                end = q;
                break;
            }
        }
        if (end == NULL) end = v + strlen(v);
        *value = (struct bytes){ v, (size_t)(end - v) };
        *rest = *end ? end + 1 : end;
    } else {
        *value = (struct bytes){ v, strcspn(v, " ") };
        *rest = v + value->len;
    }
    return true;
}

static bool is_json_number(struct bytes s)
{
    size_t i = s.len > 0 && s.at[0] == '-';
    if (i == s.len || s.len > 18 || (s.at[i] == '0' && s.len > i + 1)) return false;
    for (; i < s.len; i++)
        if (s.at[i] < '0' || s.at[i] > '9') return false;
    return true;
}

/* The ": " before the first pair, or the end: words may hold colons of their own ("cannot bind: in use: port=80"). */
static const char *words_end(const char *text)
{
    for (const char *p = text; (p = strstr(p, ": ")) != NULL; p += 2) {
        size_t key = strspn(p + 2, "abcdefghijklmnopqrstuvwxyz0123456789_");
        if (key > 0 && p[2 + key] == '=') return p;
    }
    return text + strlen(text);
}

static void add_json(struct buf *line, const char *text)
{
    const char *end = words_end(text);
    struct bytes key, value;
    buf_puts(line, ",\"message\":");
    buf_json_string(line, (struct bytes){ text, (size_t)(end - text) });
    for (const char *rest = *end ? end + 2 : end; next_pair(&rest, &key, &value);) {
        buf_puts(line, ",");
        buf_json_string(line, key);
        buf_puts(line, ":");
        if (is_json_number(value))
            buf_add(line, value);
        else
            buf_json_string(line, value);
    }
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_enabled(level)) return;
    char text[1024], when[CLOCK_ISO_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    clock_iso(clock_wall_ms(), when);

    struct buf line = BUF_INIT(16 * 1024);
    if (lg.format == LOG_JSON) {
        buf_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"role\":\"%s\",\"pid\":%d", when, level_names[level],
                   lg.role, (int)getpid());
        add_json(&line, text);
        buf_puts(&line, "}\n");
    } else {
        buf_printf(&line, "%s %-5s %s[%d] ", when, level_names[level], lg.role, (int)getpid());
        add_escaped(&line, bytes_of(text));
        buf_puts(&line, "\n");
    }
    /* One write a line: with O_APPEND the lines of many processes do not mix. A full disk must not stop a request. */
    ssize_t written = write(lg.fd, line.data, line.len);
    (void)written;
    buf_done(&line);
}
