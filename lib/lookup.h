/* lookup.h: the addresses of a host, by getaddrinfo_a beside the loop: name servers may take as long as they like. */
#ifndef HYPERPAGE_LOOKUP_H
#define HYPERPAGE_LOOKUP_H

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define LOOKUP_MOST_ADDRESSES 4

struct addresses {
    struct sockaddr_storage at[LOOKUP_MOST_ADDRESSES];
    socklen_t len[LOOKUP_MOST_ADDRESSES];
    size_t count;
};

/* Stays where it is, with its name and port, from lookup_start() to lookup_done(). Zero is its first state. */
struct lookup {
    struct gaicb request;
    struct addrinfo hints;
    char port[8];
    bool running;
};

enum lookup_state { LOOKUP_RUNNING, LOOKUP_FOUND, LOOKUP_FAILED };

/* The address of a host that is a number or the path of a unix socket (begins with /): needs no looking up. */
bool lookup_literal(const char *host, int port, struct addresses *found);

void lookup_start(struct lookup *l, const char *host, int port); /* does nothing while it runs */
enum lookup_state lookup_poll(struct lookup *l, struct addresses *found, const char **why);
void lookup_wait(struct lookup *l, int64_t most_ms); /* blocks: not for tasks */
void lookup_done(struct lookup *l);

#endif
