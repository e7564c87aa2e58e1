#include "config.h"

#include "mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

enum option_type { OPTION_TEXT, OPTION_NUMBER, OPTION_FLAG, OPTION_CHOICE, OPTION_SECRET };

struct option {
    const char *name; /* as the field: lower case */
    enum option_type type;
    const char *def;
    int64_t least, most;
    const char *unit_or_allowed;
    const char *doc;
    size_t offset;
};

#define FIELD(name) offsetof(struct config, name)
static const struct option options[] = {
#define TEXT(name, def, doc)                      { #name, OPTION_TEXT, def, 0, 0, "", doc, FIELD(name) },
#define NUMBER(name, def, least, most, unit, doc) { #name, OPTION_NUMBER, def, least, most, unit, doc, FIELD(name) },
#define FLAG(name, def, doc)                      { #name, OPTION_FLAG, def, 0, 0, "true|false", doc, FIELD(name) },
#define CHOICE(name, def, allowed, doc)           { #name, OPTION_CHOICE, def, 0, 0, allowed, doc, FIELD(name) },
#define SECRET(name, doc)                         { #name, OPTION_SECRET, "", 0, 0, "", doc, FIELD(name) },
#include "config.def"
};
#define OPTIONS          (sizeof options / sizeof options[0])
#define MOST_VALUE_BYTES 4096

/* What is allocated with a config, behind the fields that everybody sees. */
struct loaded {
    struct config config;
    char *owned[OPTIONS]; /* texts that fields point to */
};

/* The option called `name` in any of its three spellings; `len` bytes of it. */
static const struct option *option_find(const char *name, size_t len)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        const char *known = options[i].name;
        size_t n = 0;
        while (n < len && known[n] &&
               (tolower((unsigned char)name[n]) == known[n] || (name[n] == '-' && known[n] == '_')))
            n++;
        if (n == len && known[n] == '\0') return &options[i];
    }
    return NULL;
}

static void name_in_capitals(const struct option *o, char out[64])
{
    size_t i = 0;
    for (; o->name[i] && i < 63; i++) out[i] = (char)toupper((unsigned char)o->name[i]);
    out[i] = '\0';
}

static bool set_number(const struct option *o, int64_t *field, const char *text, const char *key, struct err *e)
{
    if (strcmp(o->def, "auto") == 0 && strcmp(text, "auto") == 0) {
        *field = CONFIG_AUTO;
        return true;
    }
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || n < o->least || n > o->most || isspace((unsigned char)*text))
        return err_set(e, ERR_INPUT, "%s=%.60s: allowed is %s%lld to %lld (%s)", key, text,
                       strcmp(o->def, "auto") == 0 ? "auto or " : "", (long long)o->least, (long long)o->most,
                       o->unit_or_allowed);
    *field = n;
    return true;
}

static bool set_flag(bool *field, const char *text, const char *key, struct err *e)
{
    bool on = strcmp(text, "true") == 0 || strcmp(text, "1") == 0;
    if (!on && strcmp(text, "false") != 0 && strcmp(text, "0") != 0)
        return err_set(e, ERR_INPUT, "%s=%.60s: allowed is true or false", key, text);
    *field = on;
    return true;
}

static bool set_choice(const struct option *o, int *field, const char *text, const char *key, struct err *e)
{
    size_t len = strlen(text);
    int index = 0;
    for (const char *p = o->unit_or_allowed; len > 0; index++) {
        size_t n = strcspn(p, "|");
        if (n == len && strncmp(p, text, n) == 0) {
            *field = index;
            return true;
        }
        if (p[n] == '\0') break;
        p += n + 1;
    }
    return err_set(e, ERR_INPUT, "%s=%.60s: allowed is %s", key, text, o->unit_or_allowed);
}

static bool set_text(struct loaded *l, const struct option *o, const char **field, const char *text, const char *key,
                     struct err *e)
{
    if (strlen(text) > MOST_VALUE_BYTES)
        return err_set(e, ERR_INPUT, "%s: allowed are %d bytes", key, MOST_VALUE_BYTES);
    char **owned = &l->owned[o - options];
    free(*owned);
    *field = *owned = mem_strdup(text);
    return true;
}

static bool set_value(struct loaded *l, const struct option *o, const char *text, struct err *e)
{
    char key[64];
    name_in_capitals(o, key);
    void *field = (char *)&l->config + o->offset;
    switch (o->type) {
    case OPTION_NUMBER:
        return set_number(o, field, text, key, e);
    case OPTION_FLAG:
        return set_flag(field, text, key, e);
    case OPTION_CHOICE:
        return set_choice(o, field, text, key, e);
    case OPTION_TEXT:
    case OPTION_SECRET:
        return set_text(l, o, field, text, key, e);
    }
    return false;
}

/* NAME_FILE: the secret is the file's first line, so that it stands in no environment and no process list. */
static bool set_secret_from_file(struct loaded *l, const struct option *o, const char *path, struct err *e)
{
    char key[64], line[MOST_VALUE_BYTES + 2];
    name_in_capitals(o, key);
    FILE *f = fopen(path, "re");
    if (f == NULL) return err_set(e, ERR_INPUT, "%s_FILE=%s: cannot be read: %s", key, path, strerror(errno));
    bool any = fgets(line, sizeof line, f) != NULL;
    fclose(f);
    if (any) line[strcspn(line, "\r\n")] = '\0';
    if (!any || line[0] == '\0') return err_set(e, ERR_INPUT, "%s_FILE=%s: the file is empty", key, path);
    return set_value(l, o, line, e);
}

/* Sets what `name` (len bytes) names; *known is false if it names nothing of ours. */
static bool set_named(struct loaded *l, const char *name, size_t len, const char *value, bool *known, struct err *e)
{
    const struct option *o = option_find(name, len);
    *known = o != NULL;
    if (o != NULL) return set_value(l, o, value, e);
    if (len > 5 && (strncasecmp(name + len - 5, "_FILE", 5) == 0 || strncmp(name + len - 5, "-file", 5) == 0)) {
        o = option_find(name, len - 5);
        if (o != NULL && o->type == OPTION_SECRET) {
            *known = true;
            return set_secret_from_file(l, o, value, e);
        }
    }
    return true;
}

/* KEY=value, # comments, blank lines; the value may stand in one pair of quotes, as a shell, systemd and compose
 * understand it. */
static bool read_file_line(struct loaded *l, const char *path, int number, char *line, struct err *e)
{
    char *p = line + strspn(line, " \t");
    size_t len = strcspn(p, "\r\n");
    while (len > 0 && isspace((unsigned char)p[len - 1])) len--;
    p[len] = '\0';
    if (*p == '\0' || *p == '#') return true;
    char *eq = strchr(p, '=');
    if (eq == NULL)
        return err_set(e, ERR_INPUT, "%s line %d: allowed is KEY=value, a # comment or nothing", path, number);
    char *value = eq + 1;
    size_t n = strlen(value);
    if (n >= 2 && (*value == '"' || *value == '\'') && value[n - 1] == *value) {
        value[n - 1] = '\0';
        value++;
    }
    bool known;
    if (!set_named(l, p, (size_t)(eq - p), value, &known, e)) return false;
    for (char *c = p; c < eq; c++)
        if (*c == '-') known = false; /* the dashed spelling belongs to the command line */
    return known || err_set(e, ERR_INPUT, "%s line %d: %.*s is no option (see --help)", path, number, (int)(eq - p), p);
}

static bool read_file(struct loaded *l, const char *path, struct err *e)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) return err_set(e, ERR_INPUT, "--config %s: cannot be read: %s", path, strerror(errno));
    char line[MOST_VALUE_BYTES + 256];
    bool ok = true;
    for (int number = 1; ok && fgets(line, sizeof line, f) != NULL; number++) {
        if (strchr(line, '\n') == NULL && !feof(f))
            ok = err_set(e, ERR_INPUT, "%s line %d: allowed are %d bytes", path, number, MOST_VALUE_BYTES);
        else
            ok = read_file_line(l, path, number, line, e);
    }
    if (ok && ferror(f)) ok = err_set(e, ERR_INPUT, "--config %s: cannot be read: %s", path, strerror(errno));
    fclose(f);
    return ok;
}

/* Edit distance, as far as it is below 3; enough to see a slip of a key. */
static size_t distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    size_t row[65];
    if (a_len > 64 || b_len > 64) return 3;
    for (size_t j = 0; j <= b_len; j++) row[j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t change = diagonal + (toupper((unsigned char)a[i - 1]) != toupper((unsigned char)b[j - 1]));
            diagonal = row[j];
            size_t best = row[j] < row[j - 1] ? row[j] : row[j - 1];
            row[j] = change < best + 1 ? change : best + 1;
        }
    }
    return row[b_len];
}

/* The environment belongs to many programs: a name that is none of ours stops nothing, but a near miss is noted, as
 * "NAME NEAR". */
static bool note_near_miss(const char *name, size_t len, const struct option *o, const char *suffix, struct buf *misses)
{
    char capitals[64], key[64 + sizeof "_FILE"];
    name_in_capitals(o, capitals);
    snprintf(key, sizeof key, "%s%s", capitals, suffix);
    size_t known = strlen(key);
    if (known < 7 || len < 6 || distance(name, len, key, known) > 2) return false;
    buf_printf(misses, "%.*s %s\n", (int)len, name, key);
    return true;
}

static void find_near_miss(const char *name, size_t len, struct buf *misses)
{
    for (size_t i = 0; i < OPTIONS; i++)
        if (note_near_miss(name, len, &options[i], "", misses) ||
            (options[i].type == OPTION_SECRET && note_near_miss(name, len, &options[i], "_FILE", misses)))
            return;
}

static bool read_environment(struct loaded *l, char *const environ_[], struct buf *misses, struct err *e)
{
    for (size_t i = 0; environ_[i] != NULL; i++) {
        const char *eq = strchr(environ_[i], '=');
        if (eq == NULL) continue;
        size_t len = (size_t)(eq - environ_[i]);
        bool capitals = true, known;
        for (size_t c = 0; c < len; c++)
            if (!isupper((unsigned char)environ_[i][c]) && environ_[i][c] != '_') capitals = false;
        if (!capitals) continue;
        if (!set_named(l, environ_[i], len, eq + 1, &known, e)) return false;
        if (!known) find_near_miss(environ_[i], len, misses);
    }
    return true;
}

/* --name VALUE or --name=VALUE. */
static bool read_arguments(struct loaded *l, int argc, char *const argv[], struct err *e)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "-h") == 0) continue;
        if (strncmp(name, "--", 2) != 0) return err_set(e, ERR_INPUT, "%s: no such argument (see --help)", name);
        name += 2;
        size_t len = strcspn(name, "=");
        bool flag = (len == 5 && strncmp(name, "check", 5) == 0) || strcmp(name, "help") == 0 ||
                    strcmp(name, "version") == 0 || strcmp(name, "reference") == 0;
        if (flag && name[len] == '\0') continue;
        const char *value = name[len] == '=' ? name + len + 1 : argv[++i];
        bool is_config = len == 6 && strncmp(name, "config", 6) == 0, known = is_config;
        if (value == NULL && (is_config || option_find(name, len) != NULL))
            return err_set(e, ERR_INPUT, "--%s: a value is missing", name);
        if (value != NULL && !is_config && !set_named(l, name, len, value, &known, e)) return false;
        if (!known) return err_set(e, ERR_INPUT, "--%.*s: no such option (see --help)", (int)len, name);
    }
    return true;
}

/* The words that are no options must be known before the first option is read. */
static void read_call(int argc, char *const argv[], struct config_call *call)
{
    *call = (struct config_call){ 0 };
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            call->help = true;
        else if (strcmp(argv[i], "--version") == 0)
            call->version = true;
        else if (strcmp(argv[i], "--check") == 0)
            call->check = true;
        else if (strcmp(argv[i], "--reference") == 0)
            call->reference = true;
        else if (strncmp(argv[i], "--config=", 9) == 0)
            call->file = argv[i] + 9;
        else if (strcmp(argv[i], "--config") == 0 && argv[i + 1] != NULL)
            call->file = argv[++i];
        else if (strncmp(argv[i], "--", 2) == 0 && strchr(argv[i], '=') == NULL && argv[i + 1] != NULL)
            i++;
    }
}

struct config *config_load(int argc, char *const argv[], char *const environ_[], struct config_call *call,
                           struct buf *misses, struct err *e)
{
    struct loaded *l = mem_alloc(sizeof *l);
    read_call(argc, argv, call);
    for (size_t i = 0; i < OPTIONS; i++)
        if (!set_value(l, &options[i], options[i].def, e)) goto fail;
    if (call->file != NULL && !read_file(l, call->file, e)) goto fail;
    if (!read_environment(l, environ_, misses, e)) goto fail;
    if (!read_arguments(l, argc, argv, e)) goto fail;
    return &l->config;
fail:
    config_free(&l->config);
    return NULL;
}

void config_free(struct config *c)
{
    if (c == NULL) return;
    struct loaded *l = (struct loaded *)c;
    for (size_t i = 0; i < OPTIONS; i++) free(l->owned[i]);
    free(l);
}

static void add_allowed(const struct option *o, struct buf *out)
{
    switch (o->type) {
    case OPTION_NUMBER:
        buf_printf(out, "%s%lld to %lld %s", strcmp(o->def, "auto") == 0 ? "auto, " : "", (long long)o->least,
                   (long long)o->most, o->unit_or_allowed);
        break;
    case OPTION_FLAG:
    case OPTION_CHOICE:
        buf_puts(out, o->unit_or_allowed);
        break;
    case OPTION_SECRET:
        buf_puts(out, "a secret");
        break;
    case OPTION_TEXT:
        buf_puts(out, "text");
        break;
    }
}

void config_wrap(const char *text, int indent, size_t width, struct buf *out)
{
    while (*text != '\0') {
        size_t n = strlen(text);
        if (n > width)
            for (n = width; n > 0 && text[n] != ' ';) n--;
        if (n == 0) n = strcspn(text, " ");
        buf_printf(out, "%*s%.*s\n", indent, "", (int)n, text);
        text += n + strspn(text + n, " ");
    }
}

static void value_text(const struct config *c, const struct option *o, struct buf *out)
{
    const void *field = (const char *)c + o->offset;
    const char *text = o->type == OPTION_TEXT || o->type == OPTION_SECRET ? *(const char *const *)field : "";
    const char *choice = o->unit_or_allowed;
    switch (o->type) {
    case OPTION_NUMBER:
        if (*(const int64_t *)field == CONFIG_AUTO)
            buf_puts(out, "auto");
        else
            buf_printf(out, "%lld", (long long)*(const int64_t *)field);
        break;
    case OPTION_FLAG:
        buf_puts(out, *(const bool *)field ? "true" : "false");
        break;
    case OPTION_CHOICE:
        for (int i = 0; i < *(const int *)field; i++) choice += strcspn(choice, "|") + 1;
        buf_append(out, choice, strcspn(choice, "|"));
        break;
    case OPTION_TEXT:
        buf_puts(out, text);
        break;
    case OPTION_SECRET:
        buf_puts(out, text[0] != '\0' ? "(a secret)" : "");
        break;
    }
}

void config_each(const struct config *c, void (*each)(void *ctx, const char *key, const char *value), void *ctx)
{
    struct buf value = BUF_INIT(MOST_VALUE_BYTES + 1);
    char key[64];
    for (size_t i = 0; i < OPTIONS; i++) {
        buf_reset(&value);
        value_text(c, &options[i], &value);
        name_in_capitals(&options[i], key);
        each(ctx, key, buf_text(&value));
    }
    buf_done(&value);
}

void config_help(const char *program, const char *summary, struct buf *out)
{
    buf_printf(out, "usage: %s [--config FILE] [--check] [--OPTION VALUE ...]\n\n", program);
    config_wrap(summary, 0, 100, out);
    buf_puts(out, "\n  --config FILE   options as KEY=value lines; the environment and the command line come after it\n"
                  "  --check         only says whether the options are right: exit code 0, or 2 and one line\n"
                  "  --reference     prints all options as Markdown\n"
                  "  --help, --version\n\n"
                  "Options; in files and in the environment --some-name is SOME_NAME:\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        buf_puts(out, "  --");
        for (const char *c = options[i].name; *c; c++) buf_printf(out, "%c", *c == '_' ? '-' : *c);
        buf_printf(out, " %s  (", options[i].type == OPTION_NUMBER ? "N" : "VALUE");
        add_allowed(&options[i], out);
        if (options[i].type != OPTION_SECRET)
            buf_printf(out, "; default %s", options[i].def[0] ? options[i].def : "empty");
        buf_puts(out, ")\n");
        config_wrap(options[i].doc, 6, 100, out);
    }
}

void config_reference(struct buf *out)
{
    buf_puts(out, "# Options\n\n"
                  "Each is an environment variable, a `KEY=value` line of a file given with `--config`, and a command "
                  "line option\n(`WORKERS=4` is `--workers 4`). Default < file < environment < command line. A secret "
                  "may also be given as\n`NAME_FILE`, the path of a file that holds it. This page is generated "
                  "(`make reference`).\n\n"
                  "| option | allowed | default | what it does |\n|---|---|---|---|\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        char key[64];
        name_in_capitals(&options[i], key);
        buf_printf(out, "| `%s` | ", key);
        struct buf allowed = BUF_INIT(1024);
        add_allowed(&options[i], &allowed);
        for (const char *c = buf_text(&allowed); *c; c++) buf_printf(out, "%s%c", *c == '|' ? "\\" : "", *c);
        buf_done(&allowed);
        buf_printf(out, " | %s%s%s | %s |\n", options[i].def[0] ? "`" : "",
                   options[i].def[0] ? options[i].def : "(empty)", options[i].def[0] ? "`" : "", options[i].doc);
    }
}

bool config_item(const char *list, size_t n, struct bytes *item)
{
    for (const char *p = list; *p != '\0';) {
        size_t len = strcspn(p, ",");
        const char *next = p + len + (p[len] == ',');
        while (len > 0 && isspace((unsigned char)*p)) p++, len--;
        while (len > 0 && isspace((unsigned char)p[len - 1])) len--;
        *item = (struct bytes){ p, len };
        if (len > 0 && n-- == 0) return true; /* an empty one between two commas hides nothing behind it */
        p = next;
    }
    return false;
}
