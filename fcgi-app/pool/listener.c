#include "listener.h"

#include "mem.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG      4096 /* a shorter queue than there are clients turns into 503s at the front server */
#define BUFFER_BYTES (256 * 1024)

struct place {
    char path[108]; /* "" for TCP */
    char host[256], port[8];
    mode_t mode;
    gid_t group; /* (gid_t)-1: leave it */
};

static bool read_mode(const struct config *cfg, struct place *p, struct err *e)
{
    char *end;
    long mode = strtol(cfg->listen_mode, &end, 8);
    if (end == cfg->listen_mode || *end != '\0' || mode < 0 || mode > 0777)
        return err_set(e, ERR_INPUT, "LISTEN_MODE=%s: allowed is 0 to 0777, octal", cfg->listen_mode);
    p->mode = (mode_t)mode;
    return true;
}

static bool read_group(const struct config *cfg, struct place *p, struct err *e)
{
    char *end;
    p->group = (gid_t)-1;
    if (cfg->listen_group[0] == '\0') return true;
    unsigned long number = strtoul(cfg->listen_group, &end, 10);
    struct group *g = getgrnam(cfg->listen_group);
    if (g == NULL && *end != '\0')
        return err_set(e, ERR_INPUT, "LISTEN_GROUP=%s: there is no such group", cfg->listen_group);
    p->group = g ? g->gr_gid : (gid_t)number;
    return true;
}

static bool read_place(const struct config *cfg, struct place *p, struct err *e)
{
    const char *text = cfg->listen;
    *p = (struct place){ 0 };
    if (!read_mode(cfg, p, e) || !read_group(cfg, p, e)) return false;
    int n = 1;
    if (text[0] == '\0')
        n = snprintf(p->path, sizeof p->path, "%s/fcgi.sock", cfg->run_dir);
    else if (strncmp(text, "unix:", 5) == 0)
        n = snprintf(p->path, sizeof p->path, "%s", text + 5);
    else if (text[0] == '/')
        n = snprintf(p->path, sizeof p->path, "%s", text);
    else {
        const char *colon = strrchr(text, ':');
        bool bracket = text[0] == '[' && colon != NULL && colon > text && colon[-1] == ']';
        char *end = NULL;
        long port = colon ? strtol(colon + 1, &end, 10) : 0;
        if (colon == NULL || port < 1 || port > 65535 || *end != '\0' || colon == text)
            return err_set(e, ERR_INPUT, "LISTEN=%.100s: allowed is unix:PATH, /PATH or HOST:PORT", text);
        snprintf(p->host, sizeof p->host, "%.*s", (int)(colon - text - 2 * bracket), text + bracket);
        snprintf(p->port, sizeof p->port, "%ld", port);
        return true;
    }
    if (n >= (int)sizeof p->path)
        return err_set(e, ERR_INPUT, "LISTEN: the path of a unix socket has at most %zu bytes", sizeof p->path - 1);
    return n > 0 || err_set(e, ERR_INPUT, "LISTEN=%s: the path is missing", text);
}

bool listener_check(const struct config *cfg, struct err *e)
{
    struct place p;
    return read_place(cfg, &p, e);
}

static bool is_listening(int fd)
{
    int on = 0;
    socklen_t len = sizeof on;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) == 0 && on;
}

/* Nobody may be serving at this path: a stale socket is replaced, a living one is not. */
static bool path_is_free(const char *path, struct err *e)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    struct stat st;
    memcpy(un.sun_path, path, strlen(path) + 1);
    if (lstat(path, &st) != 0) return true;
    if (!S_ISSOCK(st.st_mode)) return err_set(e, ERR_INPUT, "LISTEN=%s: there is a file that is no socket", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = fd >= 0 && connect(fd, (struct sockaddr *)&un, sizeof un) == 0 ? 0 : errno;
    if (fd >= 0) close(fd);
    if (error == 0 || error == EAGAIN) return err_set(e, ERR_INPUT, "LISTEN=%s: another process listens there", path);
    /* Only a refusal says that nobody does: somebody else's may not be ours to connect to (EACCES). */
    if (error != ECONNREFUSED) return err_set(e, ERR_INPUT, "LISTEN=%s: there is a socket: %s", path, strerror(error));
    unlink(path);
    return true;
}

/* Two that start at once must not both find the path free: a lock on its folder, which leaves no file behind. */
static int lock_folder(const char *path)
{
    char folder[sizeof((struct place *)0)->path];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        snprintf(folder, sizeof folder, ".");
    else
        slash[slash == folder] = '\0';
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) flock(fd, LOCK_EX);
    return fd;
}

/* Notes which file the path is, so that nobody else's is removed at the end. */
static void own_path(struct listener *l, const char *path)
{
    struct stat st;
    l->ours = lstat(path, &st) == 0;
    l->device = st.st_dev;
    l->inode = st.st_ino;
    snprintf(l->path, sizeof l->path, "%s", path);
}

static bool bind_unix(struct listener *l, const struct place *p, struct err *e)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    memcpy(un.sun_path, p->path, sizeof un.sun_path);
    if (!path_is_free(p->path, e)) return false;
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    mode_t old = umask(0777 & ~p->mode); /* right from the first moment, not after a chmod */
    bool bound = l->fd >= 0 && bind(l->fd, (struct sockaddr *)&un, sizeof un) == 0;
    int error = errno;
    umask(old);
    if (!bound) return err_set(e, ERR_INPUT, "LISTEN=%s: %s", p->path, strerror(error));
    own_path(l, p->path);
    if (listen(l->fd, BACKLOG) != 0) return err_set(e, ERR_INPUT, "LISTEN=%s: listen: %s", p->path, strerror(errno));
    if (p->group != (gid_t)-1 && chown(p->path, (uid_t)-1, p->group) != 0)
        return err_set(e, ERR_INPUT, "LISTEN_GROUP: the socket cannot be given to group %u: %s", (unsigned)p->group,
                       strerror(errno));
    return true;
}

static bool open_unix(struct listener *l, const struct place *p, struct err *e)
{
    int lock = lock_folder(p->path);
    bool ok = bind_unix(l, p, e);
    if (lock >= 0) close(lock);
    return ok;
}

/* A socket that listens at this address; -1 with errno. */
static int listen_at(const struct addrinfo *address)
{
    int one = 1, bytes = BUFFER_BYTES;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes); /* accepted sockets inherit both */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* A name may have addresses that this machine has not: localhost is ::1 as well where there is no IPv6. */
static bool open_tcp(struct listener *l, const struct place *p, struct err *e)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *found = NULL;
    int rc = getaddrinfo(p->host, p->port, &hints, &found), error = 0;
    if (rc != 0) return err_set(e, ERR_INPUT, "LISTEN=%s:%s: %s", p->host, p->port, gai_strerror(rc));
    for (const struct addrinfo *at = found; at != NULL; at = at->ai_next) {
        l->fd = listen_at(at);
        error = errno;
        if (l->fd >= 0 || (error != EADDRNOTAVAIL && error != EAFNOSUPPORT)) break;
    }
    freeaddrinfo(found);
    return l->fd >= 0 || err_set(e, ERR_INPUT, "LISTEN=%s:%s: %s", p->host, p->port, strerror(error));
}

/* What systemd (LISTEN_FDS) or spawn-fcgi and lighttpd (descriptor 0) have opened for us; -1 if nothing. */
static int passed_in(struct err *e)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    if (pid != NULL && fds != NULL && atol(pid) == (long)getpid() && atoi(fds) >= 1) {
        if (atoi(fds) == 1 && is_listening(3)) return 3;
        err_set(e, ERR_INPUT, "LISTEN_FDS=%s: allowed is 1, a listening stream socket", fds);
        return -2;
    }
    return is_listening(STDIN_FILENO) ? STDIN_FILENO : -1;
}

bool listener_open(struct listener *l, const struct config *cfg, int inherited, bool made, struct err *e)
{
    struct place p;
    *l = (struct listener){ .fd = inherited };
    if (!read_place(cfg, &p, e)) return false;
    if (l->fd < 0) l->fd = passed_in(e);
    if (l->fd == -2) return false;
    snprintf(l->text, sizeof l->text, p.path[0] ? "unix:%s" : "%s:%s", p.path[0] ? p.path : p.host, p.port);
    if (l->fd >= 0) {
        if (inherited < 0) snprintf(l->text, sizeof l->text, "descriptor %d", l->fd);
        fcntl(l->fd, F_SETFL, fcntl(l->fd, F_GETFL) | O_NONBLOCK);
        if (l->fd != STDIN_FILENO) fcntl(l->fd, F_SETFD, FD_CLOEXEC);
        if (made && inherited >= 0 && p.path[0] != '\0') own_path(l, p.path);
        return true;
    }
    if (p.path[0] ? open_unix(l, &p, e) : open_tcp(l, &p, e)) return true;
    listener_close(l);
    return false;
}

void listener_close(struct listener *l)
{
    if (l->fd >= 0) close(l->fd);
    struct stat st;
    if (l->ours && lstat(l->path, &st) == 0 && st.st_dev == l->device && st.st_ino == l->inode) unlink(l->path);
    *l = (struct listener){ .fd = -1 };
}
