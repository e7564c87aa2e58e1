#include "redis_url.h"

#include "buf.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

/* A form of URL: what it looks like, and who reads what stands behind the scheme. NULL: all is well; else what is
 * not. */
struct scheme {
    const char *text, *form;
    const char *(*read)(const char *p, struct redis_url *url);
};

static int hex_digit(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10 : -1;
}

/* Copies with %XX decoded; false if it does not fit, is empty where it must not be, or would hold a NUL. */
static bool copy_decoded(struct bytes from, char *to, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < from.len; i++) {
        char c = from.at[i];
        if (c == '%') {
            if (i + 2 >= from.len || hex_digit(from.at[i + 1]) < 0 || hex_digit(from.at[i + 2]) < 0) return false;
            c = (char)(hex_digit(from.at[i + 1]) * 16 + hex_digit(from.at[i + 2]));
            i += 2;
        }
        if (c == '\0' || n + 1 >= cap) return false;
        to[n++] = c;
    }
    to[n] = '\0';
    return true;
}

static bool read_number(const char *text, size_t len, int most, int *out)
{
    char digits[8] = "";
    if (len == 0 || len >= sizeof digits || strspn(text, "0123456789") < len) return false;
    memcpy(digits, text, len);
    *out = atoi(digits);
    return *out <= most;
}

/* user:password@ in front; *rest goes behind it. */
static const char *read_credentials(const char **rest, size_t authority_len, struct redis_url *url)
{
    static const char wrong[] = "user:password@ is not right";
    const char *at = memrchr(*rest, '@', authority_len);
    if (at == NULL) return NULL;
    const char *colon = memchr(*rest, ':', (size_t)(at - *rest));
    if (colon == NULL) return wrong;
    struct bytes user = { *rest, (size_t)(colon - *rest) }, password = { colon + 1, (size_t)(at - colon - 1) };
    *rest = at + 1;
    bool ok =
        copy_decoded(user, url->user, sizeof url->user) && copy_decoded(password, url->password, sizeof url->password);
    return ok ? NULL : wrong;
}

/* host[:port]; *rest goes behind it. */
static const char *read_server(const char **rest, int default_port, struct redis_url *url)
{
    const char *p = *rest;
    if (url->server_count == REDIS_URL_MOST_SERVERS) return "more than 16 servers";
    struct redis_address *server = &url->servers[url->server_count++];
    bool bracket = *p == '[';
    size_t len = bracket ? strcspn(p, "]") : strcspn(p, ":,/?");
    if (bracket && p[len] != ']') return "the host's ] is missing";
    struct bytes host = { p + bracket, len - bracket };
    if (host.len == 0 || !copy_decoded(host, server->host, sizeof server->host)) return "the host is missing";
    p += len + bracket;
    server->port = default_port;
    if (*p == ':') {
        size_t n = strcspn(++p, ",/?");
        if (!read_number(p, n, 65535, &server->port) || server->port == 0) return "the port is not 1 to 65535";
        p += n;
    }
    *rest = p;
    return NULL;
}

static const char *read_servers(const char **rest, int default_port, struct redis_url *url)
{
    const char *wrong = read_server(rest, default_port, url);
    while (wrong == NULL && **rest == ',') {
        ++*rest;
        wrong = read_server(rest, default_port, url);
    }
    return wrong;
}

/* [/db], and nothing behind it. */
static const char *read_database(const char *p, struct redis_url *url)
{
    if (*p == '/') {
        size_t n = strlen(++p);
        if (n > 0 && !read_number(p, n, 9999, &url->db)) return "the database is not a number";
        p += n;
    }
    return *p == '\0' ? NULL : "nothing may follow the database";
}

static const char *read_tcp(const char *p, struct redis_url *url)
{
    const char *wrong = read_credentials(&p, strcspn(p, "/?"), url);
    if (wrong == NULL) wrong = read_server(&p, 6379, url);
    return wrong ? wrong : read_database(p, url);
}

static const char *read_unix(const char *p, struct redis_url *url)
{
    const char *wrong = read_credentials(&p, strcspn(p, "/"), url);
    if (wrong != NULL) return wrong;
    size_t len = strcspn(p, "?");
    if (p[0] != '/' || len >= sizeof((struct sockaddr_un *)0)->sun_path)
        return "the socket's path must be absolute, under 108 bytes";
    memcpy(url->servers[0].host, p, len);
    url->server_count = 1;
    p += len;
    if (*p == '\0') return NULL;
    bool ok = strncmp(p, "?db=", 4) == 0 && read_number(p + 4, strlen(p + 4), 9999, &url->db);
    return ok ? NULL : "only ?db=N may follow the path";
}

static const char *read_sentinel(const char *p, struct redis_url *url)
{
    url->topology = REDIS_SENTINEL;
    const char *wrong = read_credentials(&p, strcspn(p, "/?"), url);
    if (wrong == NULL) wrong = read_servers(&p, 26379, url);
    if (wrong != NULL) return wrong;
    size_t len = *p == '/' ? strcspn(++p, "/?") : 0;
    if (len == 0 || !copy_decoded((struct bytes){ p, len }, url->primary, sizeof url->primary))
        return "the primary's name is missing";
    return read_database(p + len, url);
}

static const char *read_cluster(const char *p, struct redis_url *url)
{
    url->topology = REDIS_CLUSTER;
    const char *wrong = read_credentials(&p, strcspn(p, "/?"), url);
    if (wrong == NULL) wrong = read_servers(&p, 6379, url);
    if (wrong == NULL) wrong = read_database(p, url);
    return wrong == NULL && url->db != 0 ? "a cluster has only database 0" : wrong;
}

static const char *read_tls(const char *p, struct redis_url *url)
{
    (void)p, (void)url;
    return "TLS is not in the hiredis this was built with; use a local stunnel";
}

static const struct scheme schemes[] = {
    { "redis://", "redis://[user:password@]host[:port][/db]", read_tcp },
    { "redis+unix://", "redis+unix://[user:password@]/path[?db=N]", read_unix },
    { "redis-sentinel://", "redis-sentinel://[user:password@]host[:port],.../PRIMARY[/db]", read_sentinel },
    { "redis-cluster://", "redis-cluster://[user:password@]host[:port],...", read_cluster },
    { "rediss://", "redis://[user:password@]host[:port][/db]", read_tls },
};

bool redis_url_parse(const char *text, struct redis_url *url, struct err *e)
{
    *url = (struct redis_url){ .topology = REDIS_ONE_SERVER };
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        const struct scheme *s = &schemes[i];
        if (strncmp(text, s->text, strlen(s->text)) != 0) continue;
        const char *wrong = s->read(text + strlen(s->text), url);
        return wrong == NULL || err_set(e, ERR_INPUT, "REDIS_URL: %s; the form is %s", wrong, s->form);
    }
    return err_set(e, ERR_INPUT,
                   "REDIS_URL: the scheme is not known; there are redis://, redis+unix://, "
                   "redis-sentinel:// and redis-cluster://");
}

bool redis_address_equal(const struct redis_address *a, const struct redis_address *b)
{
    return a->port == b->port && strcmp(a->host, b->host) == 0;
}
