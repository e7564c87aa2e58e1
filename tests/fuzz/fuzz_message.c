/* Whatever arrives on a channel, reading it harms nothing; and what is read as a message is, written again, the same.
 */
#include "message.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct message m, again;
    struct message_limit limit;
    struct err e;
    struct bytes text = { (const char *)data, size };
    if (!message_read(text, &m, &e)) {
        assert(e.kind == ERR_INPUT);
        return 0;
    }
    assert(m.source[0] != '\0' && m.payload.at > text.at && m.payload.at + m.payload.len < text.at + text.len);
    if (message_limit_read(m.payload, &limit)) assert(limit.platform[0] != '\0' && limit.endpoint[0] != '\0');
    if (m.type == MESSAGE_UNKNOWN) return 0;
    struct buf out = BUF_INIT(2 * MESSAGE_MOST_BYTES);
    message_write(&m, "1", &out);
    if (out.len <= MESSAGE_MOST_BYTES) {
        assert(message_read(buf_bytes(&out), &again, &e));
        assert(again.type == m.type && again.priority == m.priority && again.seq == m.seq);
        assert(again.timestamp_ms == m.timestamp_ms && strcmp(again.source, m.source) == 0);
        assert(bytes_equal(again.payload, m.payload));
    }
    buf_done(&out);
    return 0;
}
