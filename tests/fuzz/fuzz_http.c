/* A request's parameters, its query and the lists in its headers: any text is read without harm, and what comes out
 * keeps what http.h promises. The input is parameters, each ended by a NUL; the lists are those of the request. */
#include "http.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MOST_PARAMS 32

static void check_path(const struct request *rq)
{
    assert(memchr(rq->path, '\0', sizeof rq->path) != NULL);
}

static void check_query(const struct request *rq)
{
    struct buf value = BUF_INIT(1 << 20);
    for (size_t nth = 0; http_query_value(rq->query, "sessionId", nth, &value); nth++) {
        assert(value.len <= strlen(rq->query));
        buf_reset(&value);
    }
    buf_done(&value);
}

static bool is_address(const char *text)
{
    unsigned char address[16];
    return inet_pton(AF_INET, text, address) == 1 || inet_pton(AF_INET6, text, address) == 1;
}

static void check_client(const struct request *rq, const char *trusted)
{
    char client[64], untrusting[64];
    http_client_address(rq, trusted, client);
    assert(client[0] == '\0' || is_address(client));
    http_client_address(rq, "", untrusting); /* who trusts nobody sees the peer, whatever it says */
    struct request bare = *rq;
    bare.forwarded_for = bare.real_ip = "";
    http_client_address(&bare, "*", client);
    assert(strcmp(untrusting, client) == 0);
}

static void check_lists(const struct request *rq)
{
    struct bytes bad, token = http_bearer(rq->authorization);
    assert(token.len <= strlen(rq->authorization));
    if (http_tag_listed(rq->if_match, "\"tag\"", false)) assert(http_tag_listed(rq->if_match, "\"tag\"", true));
    if (http_tag_listed(rq->if_none_match, "\"tag\"", true))
        assert(strstr(rq->if_none_match, "\"tag\"") || strchr(rq->if_none_match, '*'));
    http_content_type_is(rq->content_type, "application/json");
    if (!http_networks_check(rq->forwarded_for, &bad)) assert(bad.len > 0 && bad.at >= rq->forwarded_for);
}

static void check_header(const char *value)
{
    struct response rs;
    struct buf head = BUF_INIT(64 * 1024);
    response_init(&rs, 64);
    response_header(&rs, "X", value);
    response_head(&rs, &head);
    assert(strstr(buf_text(&head), "\r\n\r\n") == buf_text(&head) + head.len - 4);
    response_done(&rs);
    buf_done(&head);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct request rq;
    char *text = malloc(size + 1), *params[MOST_PARAMS + 1];
    size_t n = 0;
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *p = text; p < text + size && n < MOST_PARAMS; p += strlen(p) + 1) params[n++] = p;
    params[n] = NULL;
    if (http_read_request(params, &rq)) check_path(&rq);
    check_query(&rq);
    check_client(&rq, "127.0.0.0/8,::1");
    check_client(&rq, "*");
    check_client(&rq, rq.user_agent);
    check_lists(&rq);
    check_header(rq.request_id);
    free(text);
    return 0;
}
