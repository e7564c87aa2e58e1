#include "lookup.h"

#include <stdio.h>
#include <string.h>
#include <sys/un.h>

static void take(const struct addrinfo *list, struct addresses *found)
{
    found->count = 0;
    for (; list != NULL && found->count < LOOKUP_MOST_ADDRESSES; list = list->ai_next, found->count++) {
        memcpy(&found->at[found->count], list->ai_addr, list->ai_addrlen);
        found->len[found->count] = list->ai_addrlen;
    }
}

bool lookup_literal(const char *host, int port, struct addresses *found)
{
    char port_text[16];
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV }, *list;
    struct sockaddr_un *un = (struct sockaddr_un *)&found->at[0];
    if (host[0] == '/') {
        *un = (struct sockaddr_un){ .sun_family = AF_UNIX };
        memcpy(un->sun_path, host, strnlen(host, sizeof un->sun_path - 1));
        found->len[0] = sizeof *un;
        found->count = 1;
        return true;
    }
    snprintf(port_text, sizeof port_text, "%d", port);
    if (getaddrinfo(host, port_text, &hints, &list) != 0) return false;
    take(list, found);
    freeaddrinfo(list);
    return true;
}

void lookup_start(struct lookup *l, const char *host, int port)
{
    if (l->running) return;
    snprintf(l->port, sizeof l->port, "%d", port);
    l->hints = (struct addrinfo){ .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
    l->request = (struct gaicb){ .ar_name = host, .ar_service = l->port, .ar_request = &l->hints };
    struct gaicb *list[] = { &l->request };
    l->running = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL) == 0;
}

enum lookup_state lookup_poll(struct lookup *l, struct addresses *found, const char **why)
{
    int rc = l->running ? gai_error(&l->request) : EAI_AGAIN;
    if (rc == EAI_INPROGRESS) return LOOKUP_RUNNING;
    l->running = false;
    *why = gai_strerror(rc);
    if (rc != 0) return LOOKUP_FAILED;
    take(l->request.ar_result, found);
    freeaddrinfo(l->request.ar_result);
    return LOOKUP_FOUND;
}

void lookup_wait(struct lookup *l, int64_t most_ms)
{
    const struct gaicb *list[] = { &l->request };
    struct timespec most = { most_ms / 1000, most_ms % 1000 * 1000000 };
    if (l->running) gai_suspend(list, 1, &most);
}

void lookup_done(struct lookup *l)
{
    const struct gaicb *list[] = { &l->request };
    if (!l->running) return;
    if (gai_cancel(&l->request) == EAI_NOTCANCELED) /* its thread still writes into it */
        while (gai_suspend(list, 1, NULL) == EAI_INTR) continue;
    if (gai_error(&l->request) == 0) freeaddrinfo(l->request.ar_result);
    l->running = false;
}
