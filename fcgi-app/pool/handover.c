#include "handover.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

bool handover_open(struct handover *h, struct err *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return err_set(e, ERR_INTERNAL, "socketpair: %s", strerror(errno));
    *h = (struct handover){ .give_fd = pair[0], .take_fd = pair[1] };
    return true;
}

/* The message: one byte, and the descriptor beside it. */
struct parcel {
    char byte;
    struct iovec iov;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message;
};

static struct msghdr *parcel_init(struct parcel *p)
{
    memset(p, 0, sizeof *p);
    p->iov = (struct iovec){ &p->byte, 1 };
    p->message = (struct msghdr){
        .msg_iov = &p->iov, .msg_iovlen = 1, .msg_control = p->control.bytes, .msg_controllen = sizeof p->control.bytes
    };
    return &p->message;
}

bool handover_give(const struct handover *h, int fd)
{
    struct parcel p;
    struct msghdr *m = parcel_init(&p);
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    if (h->give_fd < 0) return false;
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(h->give_fd, m, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

int handover_take(const struct handover *h)
{
    struct parcel p;
    struct msghdr *m = parcel_init(&p);
    int fd = -1;
    if (h->take_fd < 0 || recvmsg(h->take_fd, m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1) return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}
