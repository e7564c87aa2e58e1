#include "pollset.h"

#include "mem.h"

#include <errno.h>
#include <unistd.h>

#define MOST_EVENTS 256

struct pollset {
    int epoll_fd;
    int count, at; /* events read and not yet called back */
    struct epoll_event events[MOST_EVENTS];
};

struct pollset *pollset_new(struct err *e)
{
    struct pollset *ps = mem_alloc(sizeof *ps);
    ps->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (ps->epoll_fd >= 0) return ps;
    err_set(e, ERR_INTERNAL, "epoll_create1: %s", strerror(errno));
    free(ps);
    return NULL;
}

void pollset_free(struct pollset *ps)
{
    if (ps == NULL) return;
    close(ps->epoll_fd);
    free(ps);
}

int pollset_fd(const struct pollset *ps)
{
    return ps->epoll_fd;
}

bool pollset_add(struct pollset *ps, struct watch *w, uint32_t events, struct err *e)
{
    struct epoll_event ev = { .events = events, .data.ptr = w };
    if (epoll_ctl(ps->epoll_fd, EPOLL_CTL_ADD, w->fd, &ev) == 0) return true;
    return err_set(e, ERR_INTERNAL, "epoll_ctl: %s", strerror(errno));
}

void pollset_change(struct pollset *ps, struct watch *w, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.ptr = w };
    epoll_ctl(ps->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev);
}

void pollset_remove(struct pollset *ps, struct watch *w)
{
    struct epoll_event ev = { 0 };
    epoll_ctl(ps->epoll_fd, EPOLL_CTL_DEL, w->fd, &ev);
    pollset_forget(ps, w);
}

void pollset_forget(struct pollset *ps, struct watch *w)
{
    for (int i = ps->at; i < ps->count; i++)
        if (ps->events[i].data.ptr == w) ps->events[i].data.ptr = NULL;
}

void pollset_wait(struct pollset *ps, int timeout_ms)
{
    int n = epoll_wait(ps->epoll_fd, ps->events, MOST_EVENTS, timeout_ms);
    ps->count = n > 0 ? n : 0;
    for (ps->at = 0; ps->at < ps->count;) {
        struct epoll_event *ev = &ps->events[ps->at++];
        struct watch *w = ev->data.ptr;
        if (w != NULL) w->ready(w, ev->events);
    }
    ps->count = 0;
}
