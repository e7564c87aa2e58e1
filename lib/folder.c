#include "folder.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *made[2]; /* by this start; taken away again if nothing comes of it */

/* Would the folder's parent let us make it? */
static bool may_be_made(const char *key, const char *path, struct err *e)
{
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash == NULL)
        snprintf(parent, sizeof parent, ".");
    else
        slash[slash == parent] = '\0';
    return access(parent, W_OK | X_OK) == 0 ||
           err_set(e, ERR_INPUT, "%s=%.100s: cannot be made: %s", key, path, strerror(errno));
}

bool folder_check(const char *key, const char *path, mode_t mode, bool create, struct err *e)
{
    struct stat st;
    if (path[0] == '\0') return err_set(e, ERR_INPUT, "%s is empty: allowed is the path of a folder", key);
    if (strlen(path) > 3000) return err_set(e, ERR_INPUT, "%s: allowed are 3000 bytes", key);
    if (stat(path, &st) != 0) {
        if (!create) return may_be_made(key, path, e);
        if (mkdir(path, mode) == 0) {
            made[made[0] != NULL] = path;
            return true;
        }
        if (errno != EEXIST || stat(path, &st) != 0) /* another program of ours may have come first */
            return err_set(e, ERR_INPUT, "%s=%.100s: cannot be made: %s", key, path, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode)) return err_set(e, ERR_INPUT, "%s=%.100s: is no folder", key, path);
    return access(path, W_OK | X_OK) == 0 ||
           err_set(e, ERR_INPUT, "%s=%.100s: cannot be written: %s", key, path, strerror(errno));
}

void folder_leave_nothing(void)
{
    for (size_t i = 0; i < 2 && made[i] != NULL; i++) rmdir(made[i]);
}
