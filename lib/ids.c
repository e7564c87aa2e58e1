#include "ids.h"

#include "mem.h"

#include <ctype.h>
#include <endian.h>
#include <sys/random.h>
#include <uuid/uuid.h>

static void fill_randomly(void *bytes, size_t len)
{
    if (getrandom(bytes, len, 0) == (ssize_t)len) return; /* up to 256 bytes it never gives less */
    fputs("the kernel gives no random numbers\n", stderr);
    abort();
}

static void make_version_4(uuid_t u, char out[IDS_TEXT_BYTES])
{
    u[6] = (u[6] & 0x0f) | 0x40; /* version 4 */
    u[8] = (u[8] & 0x3f) | 0x80; /* the variant of RFC 9562 */
    uuid_unparse_lower(u, out);
}

/* Not uuid_generate_random(): where the kernel's generator does not answer at once, libuuid goes on with rand(). */
void ids_new(char out[IDS_TEXT_BYTES])
{
    uuid_t u;
    fill_randomly(u, sizeof u);
    make_version_4(u, out);
}

void ids_new_public(char out[IDS_TEXT_BYTES])
{
    static uuid_t ahead[16];
    static size_t left;
    if (left == 0) {
        fill_randomly(ahead, sizeof ahead);
        left = sizeof ahead / sizeof ahead[0];
    }
    make_version_4(ahead[--left], out);
}

static bool is_id_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
}

bool ids_read(struct bytes raw, char out[IDS_TEXT_BYTES])
{
    out[0] = '\0';
    while (raw.len > 0 && isspace((unsigned char)raw.at[raw.len - 1])) raw.len--;
    for (; raw.len > 0 && isspace((unsigned char)raw.at[0]); raw.len--) raw.at++;
    if (raw.len == 0 || raw.len > IDS_MOST_BYTES) return false;
    for (size_t i = 0; i < raw.len; i++)
        if (!is_id_byte(raw.at[i])) return false;
    memcpy(out, raw.at, raw.len);
    out[raw.len] = '\0';
    return true;
}

void ids_v5(struct bytes name, char out[IDS_TEXT_BYTES])
{
    char text[UUID_STR_LEN] = "";
    uuid_t u;
    if (name.len == sizeof text - 1) memcpy(text, name.at, name.len);
    if (uuid_parse(text, u) != 0) uuid_generate_sha1(u, *uuid_get_template("url"), name.at, name.len);
    uuid_unparse_lower(u, out);
}

void ids_short(const char *id, char out[9])
{
    snprintf(out, 9, "%08x", (unsigned)ids_hash(bytes_of(id), 0));
}

/* Both halves of the 128-bit product, folded: each bit of the result depends on all of both factors. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* 16 bytes a step, read as two little-endian words and multiplied with each other; the keys are digits of pi, so that
 * zeros do not meet zeros. The length goes in last: a piece padded with zeros is another piece. */
uint64_t ids_hash(struct bytes data, uint64_t seed)
{
    static const uint64_t key[] = { 0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89 };
    uint64_t hash = seed ^ key[0], word[2];
    size_t left = data.len;
    const char *p = data.at;
    for (; left >= sizeof word; p += sizeof word, left -= sizeof word) {
        memcpy(word, p, sizeof word);
        hash = fold(le64toh(word[0]) ^ key[1], le64toh(word[1]) ^ key[2] ^ hash) + hash;
    }
    memset(word, 0, sizeof word);
    if (left > 0) memcpy(word, p, left);
    hash = fold(le64toh(word[0]) ^ key[1], le64toh(word[1]) ^ key[2] ^ hash) + hash;
    return fold(hash ^ key[3], (uint64_t)data.len ^ key[0]);
}

bool ids_same_secret(struct bytes a, struct bytes b)
{
    volatile unsigned char differences = 0; /* volatile: the compiler must not leave the loop early */
    if (a.len != b.len) return false;
    for (size_t i = 0; i < a.len; i++) differences |= (unsigned char)(a.at[i] ^ b.at[i]);
    return differences == 0;
}
