#include "log.h"

#include "buf.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MOST_TEXT 1024 /* of a line; what is longer is cut */

static struct {
    const char *role;
    const char *path;
    enum log_level level;
    enum log_format format;
    int fd;
} lg = { .role = "-", .path = "", .level = LOG_INFO, .fd = STDERR_FILENO };

static const char *const level_names[] = { "error", "warn", "info", "debug" };

void log_keep_standard(void)
{
    int fd;
    do fd = open("/dev/null", O_RDWR); /* the lowest that is free */
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO) close(fd);
}

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

static bool is_json_number(struct bytes s)
{
    size_t i = s.len > 0 && s.at[0] == '-';
    if (i == s.len || s.len > 18 || (s.at[i] == '0' && s.len > i + 1)) return false;
    for (; i < s.len; i++)
        if (s.at[i] < '0' || s.at[i] > '9') return false;
    return true;
}

/* --- JSON form: which members there are and which are numbers is said by the format alone, whatever the values hold
 * --- */

#define MOST_PAIRS 16
#define BETWEEN    '\1' /* stands before each value */

struct pairs {
    size_t count;
    struct {
        struct bytes name;
        bool is_text; /* quoted or %s: a string also if it looks like a number */
    } pair[MOST_PAIRS];
};

/* The ": " before the first pair, or the end: words may hold colons of their own ("cannot bind: in use: port=80"). */
static const char *words_end(const char *fmt)
{
    for (const char *p = fmt; (p = strstr(p, ": ")) != NULL; p += 2) {
        size_t key = strspn(p + 2, "abcdefghijklmnopqrstuvwxyz0123456789_");
        if (key > 0 && p[2 + key] == '=') return p;
    }
    return fmt + strlen(fmt);
}

/* Reads the pairs of a format; `parts` gets the format of the words, and behind each BETWEEN that of a value. */
static void take_apart(const char *fmt, struct pairs *ps, struct buf *parts)
{
    const char *end = words_end(fmt);
    buf_append(parts, fmt, (size_t)(end - fmt));
    ps->count = 0;
    for (const char *p = *end ? end + 2 : end; *p != '\0' && ps->count < MOST_PAIRS; p += strspn(p, " ")) {
        struct bytes name = { p, strcspn(p, "=") };
        const char *value = p + name.len + (p[name.len] == '=');
        bool quoted = *value == '"';
        value += quoted;
        size_t len = strcspn(value, quoted ? "\"" : " ");
        ps->pair[ps->count].name = name;
        ps->pair[ps->count++].is_text = quoted || (len > 1 && value[0] == '%' && value[len - 1] == 's');
        buf_append(parts, &(char){ BETWEEN }, 1);
        buf_append(parts, value, len);
        p = value + len + (quoted && value[len] == '"');
    }
}

static size_t count_between(struct bytes parts)
{
    size_t n = 0;
    for (size_t i = 0; i < parts.len; i++) n += parts.at[i] == BETWEEN;
    return n;
}

static void add_members(struct buf *line, const struct pairs *ps, struct bytes parts)
{
    const char *at = parts.at, *end = parts.at + parts.len;
    /* More than are ours: a value holds that byte, and nobody can say which. Fewer: the line was too long. */
    bool split = count_between(parts) <= ps->count;
    for (size_t i = 0; i <= ps->count && at != NULL; i++) {
        const char *next = split ? memchr(at, BETWEEN, (size_t)(end - at)) : NULL;
        struct bytes value = { at, (size_t)((next ? next : end) - at) };
        buf_puts(line, ",");
        buf_json_string(line, i == 0 ? bytes_of("message") : ps->pair[i - 1].name);
        buf_puts(line, ":");
        if (i > 0 && !ps->pair[i - 1].is_text && is_json_number(value))
            buf_add(line, value);
        else
            buf_json_string(line, value);
        at = next ? next + 1 : NULL;
    }
}

static void add_json(struct buf *line, const char *fmt, va_list ap)
{
    char text[MOST_TEXT];
    struct pairs ps;
    struct buf parts = BUF_INIT(MOST_TEXT);
    take_apart(fmt, &ps, &parts);
    vsnprintf(text, sizeof text, buf_text(&parts), ap);
    buf_done(&parts);
    add_members(line, &ps, bytes_of(text));
}

static void add_text(struct buf *line, const char *fmt, va_list ap)
{
    char text[MOST_TEXT];
    vsnprintf(text, sizeof text, fmt, ap);
    add_escaped(line, bytes_of(text));
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_enabled(level)) return;
    char when[CLOCK_ISO_BYTES];
    struct buf line = BUF_INIT(16 * 1024);
    va_list ap;
    clock_iso(clock_wall_ms(), when);
    va_start(ap, fmt);
    if (lg.format == LOG_JSON) {
        buf_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"role\":\"%s\",\"pid\":%d", when, level_names[level],
                   lg.role, (int)getpid());
        add_json(&line, fmt, ap);
        buf_puts(&line, "}\n");
    } else {
        buf_printf(&line, "%s %-5s %s[%d] ", when, level_names[level], lg.role, (int)getpid());
        add_text(&line, fmt, ap);
        buf_puts(&line, "\n");
    }
    va_end(ap);
    /* One write a line: with O_APPEND the lines of many processes do not mix. A full disk must not stop a request. */
    ssize_t written = write(lg.fd, line.data, line.len);
    (void)written;
    buf_done(&line);
}
