#include "backlog.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of a listening socket these two fields mean the queue (tcp_get_info() in the kernel). */
static bool read_tcp(int listen_fd, uint32_t *waiting, uint32_t *most)
{
    struct tcp_info info;
    socklen_t len = sizeof info;
    if (getsockopt(listen_fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0) return false;
    *waiting = info.tcpi_unacked;
    *most = info.tcpi_sacked;
    return true;
}

static bool ask_for(int netlink_fd, uint32_t inode)
{
    struct {
        struct nlmsghdr head;
        struct unix_diag_req diag;
    } ask = { .head = { .nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST },
              .diag = { .sdiag_family = AF_UNIX,
                        .udiag_states = UINT32_MAX,
                        .udiag_ino = inode,
                        .udiag_show = UDIAG_SHOW_RQLEN,
                        .udiag_cookie = { UINT32_MAX, UINT32_MAX } } };
    return send(netlink_fd, &ask, sizeof ask, 0) == sizeof ask;
}

static bool read_answer(int netlink_fd, struct unix_diag_rqlen *queue)
{
    union {
        struct nlmsghdr head;
        char bytes[1024];
    } got;
    ssize_t n = recv(netlink_fd, &got, sizeof got, MSG_DONTWAIT); /* the kernel answers within send() */
    if (n < (ssize_t)NLMSG_LENGTH(sizeof(struct unix_diag_msg)) || got.head.nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return false;
    struct rtattr *a = (struct rtattr *)((char *)NLMSG_DATA(&got.head) + NLMSG_ALIGN(sizeof(struct unix_diag_msg)));
    ssize_t left = n - (ssize_t)NLMSG_LENGTH(sizeof(struct unix_diag_msg));
    for (; RTA_OK(a, left); a = RTA_NEXT(a, left))
        if (a->rta_type == UNIX_DIAG_RQLEN && RTA_PAYLOAD(a) >= sizeof *queue) {
            memcpy(queue, RTA_DATA(a), sizeof *queue);
            return true;
        }
    return false;
}

static bool read_unix(int listen_fd, uint32_t *waiting, uint32_t *most)
{
    struct unix_diag_rqlen queue;
    struct stat st;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    bool ok = fd >= 0 && fstat(listen_fd, &st) == 0 && ask_for(fd, (uint32_t)st.st_ino) && read_answer(fd, &queue);
    if (fd >= 0) close(fd);
    if (!ok) return false;
    *waiting = queue.udiag_rqueue;
    *most = queue.udiag_wqueue;
    return true;
}

bool backlog_read(int listen_fd, uint32_t *waiting, uint32_t *most)
{
    int domain = 0, listens = 0;
    socklen_t len = sizeof domain, listens_len = sizeof listens;
    if (getsockopt(listen_fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) != 0 ||
        getsockopt(listen_fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_len) != 0 || !listens)
        return false;
    return domain == AF_UNIX ? read_unix(listen_fd, waiting, most) : read_tcp(listen_fd, waiting, most);
}
