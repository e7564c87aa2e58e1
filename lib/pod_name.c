#include "pod_name.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SUFFIX_BYTES 9 /* 8 hex digits and a NUL */

bool pod_name_check(const struct config *cfg, struct err *e)
{
    char name[POD_NAME_BYTES];
    bool ok = cfg->pod_name[0] == '\0' || ids_read(bytes_of(cfg->pod_name), name);
    if (ok && cfg->pod_name[0] != '\0') /* these two are channels of everybody's */
        ok = strcmp(name, "all") != 0 && strcmp(name, "election") != 0;
    return ok || err_set(e, ERR_INPUT,
                         "POD_NAME=%.60s: allowed are 1 to 128 of A-Z a-z 0-9 . _ -, and neither all nor "
                         "election",
                         cfg->pod_name);
}

static bool read_suffix(const char *path, char suffix[SUFFIX_BYTES])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, suffix, SUFFIX_BYTES - 1);
    close(fd);
    suffix[SUFFIX_BYTES - 1] = '\0';
    return n == SUFFIX_BYTES - 1 && strspn(suffix, "0123456789abcdef") == SUFFIX_BYTES - 1;
}

/* Written beside and then linked: whoever comes second finds the whole suffix of the first, whenever anybody dies. */
static bool make_suffix(const char *path, struct err *e)
{
    char beside[4096], id[IDS_TEXT_BYTES];
    ids_new_public(id);
    snprintf(beside, sizeof beside, "%.4000s.%d", path, (int)getpid());
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, id, SUFFIX_BYTES - 1) == SUFFIX_BYTES - 1;
    ok = ok && (link(beside, path) == 0 || errno == EEXIST);
    if (!ok) err_set(e, ERR_INPUT, "STATE_DIR: %s cannot be written: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    unlink(beside);
    return ok;
}

bool pod_name(const struct config *cfg, char out[POD_NAME_BYTES], struct err *e)
{
    char path[4096], suffix[SUFFIX_BYTES], host[65] = "", text[128];
    if (!pod_name_check(cfg, e)) return false;
    if (cfg->pod_name[0] != '\0') return ids_read(bytes_of(cfg->pod_name), out);
    snprintf(path, sizeof path, "%.4000s/pod-suffix", cfg->state_dir);
    if (!read_suffix(path, suffix) && !make_suffix(path, e)) return false;
    if (!read_suffix(path, suffix)) return err_set(e, ERR_INPUT, "STATE_DIR: %s is not ours", path);
    gethostname(host, sizeof host - 1);
    snprintf(text, sizeof text, "%s-%s", host, suffix);
    return ids_read(bytes_of(text), out) || err_set(e, ERR_INPUT, "POD_NAME is empty, and the host's name will not do");
}
