#include "redis_url.h"

#include "buf.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static bool refuse(struct err *e, const char *why)
{
    return err_set(e, ERR_INPUT,
                   "REDIS_URL: %s; allowed is redis://[user:password@]host[:port][/db] or "
                   "redis+unix://[user:password@]/path[?db=N]", why);
}

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
static bool read_credentials(const char **rest, size_t authority_len, struct redis_url *url)
{
    const char *at = NULL;
    for (size_t i = 0; i < authority_len; i++)
        if ((*rest)[i] == '@') at = *rest + i;
    if (at == NULL) return true;
    const char *colon = memchr(*rest, ':', (size_t)(at - *rest));
    if (colon == NULL) return false;
    struct bytes user = { *rest, (size_t)(colon - *rest) }, password = { colon + 1, (size_t)(at - colon - 1) };
    *rest = at + 1;
    return copy_decoded(user, url->user, sizeof url->user) &&
           copy_decoded(password, url->password, sizeof url->password);
}

static bool parse_unix(const char *p, struct redis_url *url, struct err *e)
{
    if (!read_credentials(&p, strcspn(p, "/"), url)) return refuse(e, "user:password@ is not right");
    size_t len = strcspn(p, "?");
    if (p[0] != '/' || len >= sizeof url->path) return refuse(e, "the socket's path must be absolute, under 108 bytes");
    memcpy(url->path, p, len);
    p += len;
    if (*p == '\0') return true;
    if (strncmp(p, "?db=", 4) != 0 || !read_number(p + 4, strlen(p + 4), 9999, &url->db)) return refuse(e, "only ?db=N may follow the path");
    return true;
}

static bool parse_tcp(const char *p, struct redis_url *url, struct err *e)
{
    if (!read_credentials(&p, strcspn(p, "/?"), url)) return refuse(e, "user:password@ is not right");
    size_t len = *p == '[' ? strcspn(p, "]") : strcspn(p, ":/?");
    bool bracket = *p == '[';
    if (bracket && p[len] != ']') return refuse(e, "the host's ] is missing");
    struct bytes host = { p + bracket, len - bracket };
    if (host.len == 0 || !copy_decoded(host, url->host, sizeof url->host)) return refuse(e, "the host is missing");
    p += len + bracket;
    url->port = 6379;
    if (*p == ':') {
        size_t n = strcspn(++p, "/?");
        if (!read_number(p, n, 65535, &url->port) || url->port == 0) return refuse(e, "the port is not 1 to 65535");
        p += n;
    }
    if (*p == '/') {
        size_t n = strlen(++p);
        if (n > 0 && !read_number(p, n, 9999, &url->db)) return refuse(e, "the database is not a number");
        p += n;
    }
    return *p == '\0' || refuse(e, "nothing may follow the database");
}

bool redis_url_parse(const char *text, struct redis_url *url, struct err *e)
{
    *url = (struct redis_url){ 0 };
    if (strncmp(text, "redis+unix://", 13) == 0) return parse_unix(text + 13, url, e);
    if (strncmp(text, "redis://", 8) == 0) return parse_tcp(text + 8, url, e);
    if (strncmp(text, "rediss://", 9) == 0)
        return refuse(e, "TLS is not in the hiredis this was built with; use a local stunnel and redis://");
    return refuse(e, "the scheme is not known");
}
