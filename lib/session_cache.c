#include "session_cache.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* The memory is a row of sets. A session's id names its set by a hash, so a set is all that an operation touches: a
 * small hash table of its own (buckets with chains of entries) over a pool of chunks that hold ids and documents. A
 * set of 128 KiB holds about 150 documents of 700 bytes; what remains unused is rounding (half a chunk a document). */
#define SET_BYTES   (128 * 1024)
#define BUCKETS     256
#define ENTRIES     192
#define CHUNKS      916
#define CHUNK_WORDS 16
#define CHUNK_BYTES (CHUNK_WORDS * sizeof(uint64_t))
#define NONE        UINT16_MAX

#define MOST_CONTENT_BYTES (SESSION_CACHE_MOST_ID_BYTES + SESSION_CACHE_MOST_DOC_BYTES)
#define MOST_CONTENT_WORDS (MOST_CONTENT_BYTES / sizeof(uint64_t))

/* A reader copies while a writer may write, and finds out afterwards by the set's count of changes. So all that both
 * touch is atomic: words written with release and read with acquire keep their order relative to that count without
 * fences, and are plain moves on x86. */
#define READ(x)     atomic_load_explicit(&(x), memory_order_acquire)
#define WRITE(x, v) atomic_store_explicit(&(x), (v), memory_order_release)

struct entry {
    _Atomic uint64_t stamp; /* the bucket's epoch (and the generation) that it was filled in, or carried over to */
    _Atomic uint64_t sum;   /* of all below but `next`, and of the content: what does not fit is no copy */
    _Atomic int64_t expires_at_ms, filled_ms;
    _Atomic uint32_t hash; /* of the id; names the bucket */
    _Atomic uint32_t doc_bytes;
    _Atomic uint16_t id_bytes; /* 0: the entry is free */
    _Atomic uint16_t chunk;    /* the first of its content: the id, the document, zeros to a multiple of 32 bytes */
    _Atomic uint16_t next;     /* in the same bucket, or in the list of free entries */
    _Atomic uint16_t used;     /* read since the clock's hand came by; readers set it */
};

struct set {
    /* Who writes: a token, see below; 0 nobody. Everything but `tide`, `used` and this belongs to the owner. */
    _Alignas(64) _Atomic uint64_t owner;
    _Atomic uint64_t changes; /* odd while a change is under way; 0: never used, the lists are yet to be made */
    uint16_t free_entry, free_chunk, entries, free_chunks, hand;

    /* Of each bucket: epoch << 32 | floor. Copies with a stamp below the epoch are unproven, below the floor they are
     * dead. Anybody may raise both, without being the owner. */
    _Alignas(64) _Atomic uint64_t tide[BUCKETS];
    _Atomic uint16_t head[BUCKETS];
    struct entry entry[ENTRIES];
    _Atomic uint16_t next_chunk[CHUNKS]; /* in the same content, or in the list of free chunks */
    _Alignas(64) _Atomic uint64_t chunk[CHUNKS][CHUNK_WORDS];
};
static_assert(sizeof(struct set) <= SET_BYTES && SET_BYTES - sizeof(struct set) < 2 * CHUNK_BYTES,
              "CHUNKS fills a set");
static_assert((size_t)CHUNKS * CHUNK_BYTES >= MOST_CONTENT_BYTES, "the longest document fits a set");

#define EPOCH_ONE  ((uint64_t)1 << 32) /* of a tide */
#define MOST_DEPTH (1u << 30)          /* most epochs above the floor, since both wrap around and are compared */

/* The file RUN_DIR/session_cache-LAYOUT: this, how full each set is, the sets. */
struct table {
    uint64_t magic;
    uint32_t number; /* as `current` of the control file calls it */
    uint32_t sets;
    uint64_t seed; /* of hashes, so that nobody can choose ids that fall into one set */
    uint64_t sets_at;
    _Alignas(64) _Atomic uint32_t fill[]; /* of each set: entries << 16 | chunks in use */
};

/* The file RUN_DIR/session_cache, of all layouts: which table is in use, and who lives. What stands here never moves,
 * new fields go to the end; zeros are a node without cache. */
#define LAYOUT       1
#define LAYOUTS_MOST 1024
#define PLACES       1024                  /* most processes at once */
#define MAGIC        0x65686361635f5048ull /* "HP_cache" */
struct control {
    uint64_t magic;
    uint64_t boot;                                     /* of the machine: copies of another are of unknown age */
    uint32_t last_number;                              /* that a table got; under the creation lock */
    _Alignas(64) _Atomic uint32_t current;             /* number of the table that all use; 0: none */
    _Atomic uint32_t generation;                       /* copies of another one are unproven */
    _Alignas(64) _Atomic uint32_t incarnation[PLACES]; /* how many processes have had this place */
};

/* Locks on the control file. They belong to the open file (OFD), so that the kernel drops them with the process,
 * however it ends, whatever pid it had in whatever namespace. */
#define CREATION_LOCK  ((off_t)0)
#define PLACE_LOCK(n)  (1 + (off_t)(n))                  /* as long as the process in place n lives */
#define LAYOUT_LOCK(n) (PLACE_LOCK(PLACES) + (off_t)(n)) /* shared by the processes that know layout n only */

struct session_cache {
    struct control *control;
    struct table *table; /* NULL while off */
    size_t mapped_bytes;
    uint32_t number;                      /* of the table; 0 while off */
    uint64_t me;                          /* as an owner: incarnation << 16 | place + 1 */
    int fd;                               /* of the control file: holds the locks */
    int64_t bytes;                        /* what the table should have; 0: be off */
    bool warned;                          /* that there is none */
    char run_dir[4000];                   /* leaves room for the names of the files in it */
    uint64_t scratch[MOST_CONTENT_WORDS]; /* one content, outside of the table */
};

/* --- hashing --- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Of a multiple of 4 words. Two lanes, since each step waits for the one before. */
static uint64_t digest(const uint64_t *word, size_t words, uint64_t seed)
{
    uint64_t a = seed ^ 0x9e3779b97f4a7c15, b = seed ^ 0xd1b54a32d192ed03;
    for (size_t i = 0; i < words; i += 4) {
        a = mix(a ^ word[i], word[i + 1] ^ 0xa0761d6478bd642f);
        b = mix(b ^ word[i + 2], word[i + 3] ^ 0xe7037ed1a0b428db);
    }
    return mix(a ^ words, b ^ 0x8ebc6af09c88c6e3);
}

static size_t content_words(size_t bytes)
{
    return (bytes + 31) / 32 * 4;
}

static size_t content_chunks(size_t bytes)
{
    return (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
}

/* What all but the content adds to an entry's sum. */
static uint64_t entry_seed(const struct session_cache *c, struct entry *en)
{
    uint64_t word[4] = { (uint64_t)READ(en->expires_at_ms), (uint64_t)READ(en->filled_ms), READ(en->hash),
                         (uint64_t)READ(en->doc_bytes) << 16 | READ(en->id_bytes) };
    return digest(word, 4, c->table->seed);
}

/* --- what may be seen of a copy, by its stamp --- */

static uint64_t stamp_of(const struct session_cache *c, uint64_t tide)
{
    return (uint64_t)atomic_load(&c->control->generation) << 32 | tide >> 32;
}

static bool is_dead(uint64_t stamp, uint64_t tide)
{
    return (int32_t)((uint32_t)stamp - (uint32_t)tide) < 0;
}

/* Kills the copies of a bucket. Needs no ownership and lets nobody in between: a copy that is being written right now
 * carries an older stamp and is dead when it appears. */
static void bucket_kill(_Atomic uint64_t *tide)
{
    uint64_t was = atomic_load(tide), epoch;
    do epoch = (was >> 32) + 1;
    while (!atomic_compare_exchange_weak(tide, &was, epoch << 32 | (uint32_t)epoch));
}

/* --- owning a set --- */

static bool lock_bytes(int fd, int command, short type, off_t at, off_t len)
{
    struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = len };
    int rc;
    do rc = fcntl(fd, command, &l);
    while (rc < 0 && errno == EINTR);
    return rc == 0;
}

/* Does anybody else hold a lock on one of these bytes? */
static bool bytes_are_locked(int fd, off_t at, off_t len)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = len };
    return len > 0 && (fcntl(fd, F_OFD_GETLK, &l) < 0 || l.l_type != F_UNLCK);
}

static bool owner_lives(const struct session_cache *c, uint64_t owner)
{
    uint32_t place = (uint32_t)(owner & 0xffff) - 1;
    if (place >= PLACES || atomic_load(&c->control->incarnation[place]) != (uint32_t)(owner >> 16)) return false;
    return bytes_are_locked(c->fd, PLACE_LOCK(place), 1);
}

static void change_begin(struct set *s)
{
    atomic_store_explicit(&s->changes, atomic_load_explicit(&s->changes, memory_order_relaxed) | 1,
                          memory_order_relaxed);
}

static void change_end(struct session_cache *c, struct set *s)
{
    size_t index = (size_t)((char *)s - (char *)c->table - c->table->sets_at) / SET_BYTES;
    uint32_t fill = (uint32_t)s->entries << 16 | (uint32_t)(CHUNKS - s->free_chunks);
    if (READ(c->table->fill[index]) != fill) WRITE(c->table->fill[index], fill);
    WRITE(s->changes, atomic_load_explicit(&s->changes, memory_order_relaxed) + 1);
}

static void set_repair(struct session_cache *c, struct set *s);

/* Takes the set if no living process has it. What a dead one left half done is made whole. */
static bool set_take(struct session_cache *c, struct set *s)
{
    uint64_t owner = 0;
    while (!atomic_compare_exchange_strong(&s->owner, &owner, c->me)) {
        assert(owner != c->me);
        if (owner_lives(c, owner)) return false;
    }
    uint64_t changes = READ(s->changes);
    if (changes % 2 != 0 || changes == 0) set_repair(c, s);
    return true;
}

static void set_leave(struct set *s)
{
    WRITE(s->owner, 0);
}

/* --- entries of a set; all but content_read() for its owner --- */

/* Copies the content of `bytes` that begins at `chunk` into the scratch and returns the words. What it is, a reader
 * learns afterwards: until then nothing read here can be trusted to be more than a number. */
static size_t content_read(struct session_cache *c, struct set *s, uint16_t chunk, size_t bytes)
{
    size_t words = content_words(bytes);
    for (size_t done = 0; done < words; done += CHUNK_WORDS) {
        if (chunk >= CHUNKS) return 0;
        size_t n = words - done < CHUNK_WORDS ? words - done : CHUNK_WORDS;
        for (size_t i = 0; i < n; i++) c->scratch[done + i] = READ(s->chunk[chunk][i]);
        chunk = READ(s->next_chunk[chunk]);
    }
    return words;
}

static void content_write(struct session_cache *c, struct set *s, uint16_t chunk, size_t words)
{
    for (size_t done = 0; done < words; done += CHUNK_WORDS) {
        size_t n = words - done < CHUNK_WORDS ? words - done : CHUNK_WORDS;
        for (size_t i = 0; i < n; i++) WRITE(s->chunk[chunk][i], c->scratch[done + i]);
        chunk = READ(s->next_chunk[chunk]);
    }
}

static size_t entry_bytes(struct entry *en)
{
    return (size_t)READ(en->id_bytes) + READ(en->doc_bytes);
}

/* The entry of the bucket with that hash, or NULL. Two ids of one hash share an entry: the later one has it. Readers
 * too call this, while it may change under them: hence the bounds. */
static struct entry *entry_find(struct set *s, uint32_t hash)
{
    uint16_t i = READ(s->head[hash % BUCKETS]);
    for (int steps = 0; i < ENTRIES && steps < ENTRIES; steps++) {
        if (READ(s->entry[i].hash) == hash) return &s->entry[i];
        i = READ(s->entry[i].next);
    }
    return NULL;
}

/* The content of a free entry stays where it is, and may be where the next copy of the same session is going to be: who
 * is killed while writing that one must not bring this one back. */
static void entry_void(struct entry *en)
{
    WRITE(en->sum, 0);
    WRITE(en->id_bytes, 0);
}

/* Puts an entry that has its hash into its bucket. */
static void entry_link(struct set *s, struct entry *en)
{
    _Atomic uint16_t *head = &s->head[READ(en->hash) % BUCKETS];
    WRITE(en->next, READ(*head));
    WRITE(*head, (uint16_t)(en - s->entry));
    s->entries++;
}

static void entry_free(struct set *s, struct entry *en)
{
    uint16_t self = (uint16_t)(en - s->entry);
    _Atomic uint16_t *link = &s->head[READ(en->hash) % BUCKETS];
    while (READ(*link) != self) link = &s->entry[READ(*link)].next;
    WRITE(*link, READ(en->next));

    size_t chunks = content_chunks(entry_bytes(en));
    uint16_t last = READ(en->chunk);
    for (size_t n = 1; n < chunks; n++) last = READ(s->next_chunk[last]);
    WRITE(s->next_chunk[last], s->free_chunk);
    s->free_chunk = READ(en->chunk);
    s->free_chunks = (uint16_t)(s->free_chunks + chunks);

    entry_void(en);
    WRITE(en->next, s->free_entry);
    s->free_entry = self;
    s->entries--;
}

/* A free entry in the bucket of `hash` with so many chunks; there must be room. */
static struct entry *entry_new(struct set *s, uint32_t hash, size_t chunks)
{
    struct entry *en = &s->entry[s->free_entry];
    s->free_entry = READ(en->next);
    WRITE(en->chunk, s->free_chunk); /* the free chunks are a chain already: the first ones are taken off */
    for (size_t n = 0; n < chunks; n++) s->free_chunk = READ(s->next_chunk[s->free_chunk]);
    s->free_chunks = (uint16_t)(s->free_chunks - chunks);
    WRITE(en->hash, hash);
    WRITE(en->used, 0);
    entry_link(s, en);
    return en;
}

/* Evicts until there is room: dead and expired copies, and live ones that nobody has read since the hand last came by.
 */
static void set_make_room(struct set *s, size_t chunks)
{
    int64_t now_ms = clock_wall_ms();
    while (s->free_chunks < chunks || s->entries == ENTRIES) {
        struct entry *en = &s->entry[s->hand];
        s->hand = (uint16_t)((s->hand + 1) % ENTRIES);
        if (READ(en->id_bytes) == 0) continue;
        int64_t expires_at_ms = READ(en->expires_at_ms);
        bool dead = is_dead(READ(en->stamp), READ(s->tide[READ(en->hash) % BUCKETS]));
        bool expired = expires_at_ms != 0 && expires_at_ms <= now_ms;
        if (!dead && !expired && READ(en->used) != 0) {
            WRITE(en->used, 0);
            continue;
        }
        if (!dead) metrics_add(expired ? METRIC_cache_expiries_total : METRIC_cache_evictions_total, 1);
        entry_free(s, en);
    }
}

/* Copies of other sessions of the bucket that were proven up to the tide `was` stay so at the next epoch. */
static void bucket_carry_over(struct session_cache *c, struct set *s, uint32_t hash, uint64_t was)
{
    uint64_t from = stamp_of(c, was), to = stamp_of(c, was + EPOCH_ONE);
    for (uint16_t i = READ(s->head[hash % BUCKETS]); i != NONE; i = READ(s->entry[i].next)) {
        struct entry *en = &s->entry[i];
        if (READ(en->hash) != hash && READ(en->stamp) == from) WRITE(en->stamp, to);
    }
}

/* Says that the session with that hash has changed, and returns the tide that stood before. */
static uint64_t set_raise(struct session_cache *c, struct set *s, uint32_t hash)
{
    _Atomic uint64_t *tide = &s->tide[hash % BUCKETS];
    uint64_t was = atomic_fetch_add(tide, EPOCH_ONE);
    bucket_carry_over(c, s, hash, was);
    if ((uint32_t)(was >> 32) - (uint32_t)was > MOST_DEPTH) bucket_kill(tide);
    return was;
}

struct session {
    const char *id;
    size_t id_bytes; /* 0: no id that is ever kept */
    uint32_t hash;
    struct set *set;
};

/* Stores a copy. If we are killed in here the next owner finds either a whole entry or none. */
static void set_store(struct session_cache *c, const struct session *sn, struct bytes doc, int64_t expires_at_ms,
                      uint64_t stamp)
{
    struct set *s = sn->set;
    size_t bytes = sn->id_bytes + doc.len, words = content_words(bytes), chunks = content_chunks(bytes);
    memset(&c->scratch[words - 4], 0, 32);
    memcpy(c->scratch, sn->id, sn->id_bytes);
    memcpy((char *)c->scratch + sn->id_bytes, doc.at, doc.len);

    struct entry *en = entry_find(s, sn->hash);
    change_begin(s);
    if (en != NULL && content_chunks(entry_bytes(en)) != chunks) {
        entry_free(s, en);
        en = NULL;
    }
    if (en == NULL) {
        set_make_room(s, chunks);
        en = entry_new(s, sn->hash, chunks);
    }
    WRITE(en->expires_at_ms, expires_at_ms);
    WRITE(en->filled_ms, clock_mono_ms());
    WRITE(en->doc_bytes, (uint32_t)doc.len);
    WRITE(en->id_bytes, (uint16_t)sn->id_bytes);
    content_write(c, s, READ(en->chunk), words);
    WRITE(en->stamp, stamp); /* when the old copy is gone, and before the sum vouches for the new one */
    WRITE(en->sum, digest(c->scratch, words, entry_seed(c, en)));
    change_end(c, s);
}

static void set_remove(struct session_cache *c, struct set *s, struct entry *en)
{
    change_begin(s);
    entry_free(s, en);
    change_end(c, s);
}

/* Is this entry what somebody once stored, and are its chunks nobody else's? Then they are marked as taken. */
static bool entry_is_whole(struct session_cache *c, struct set *s, struct entry *en, bool taken[CHUNKS])
{
    size_t bytes = entry_bytes(en), chunks = content_chunks(bytes), n = 0;
    if (READ(en->id_bytes) == 0 || bytes > MOST_CONTENT_BYTES) return false;
    size_t words = content_read(c, s, READ(en->chunk), bytes);
    if (words == 0 || digest(c->scratch, words, entry_seed(c, en)) != READ(en->sum)) return false;
    uint16_t chunk = READ(en->chunk);
    for (; n < chunks && !taken[chunk]; n++, chunk = READ(s->next_chunk[chunk])) taken[chunk] = true;
    return n == chunks;
}

/* Makes the lists of a set anew from those of its entries that are whole: after the death of an owner within a change,
 * and in a set never used, which is zeros. */
static void set_repair(struct session_cache *c, struct set *s)
{
    bool taken[CHUNKS] = { false };
    change_begin(s);
    s->free_entry = s->free_chunk = NONE;
    s->entries = s->free_chunks = 0;
    if (s->hand >= ENTRIES) s->hand = 0;
    for (size_t b = 0; b < BUCKETS; b++) WRITE(s->head[b], NONE);
    for (uint16_t i = ENTRIES; i-- > 0;) {
        struct entry *en = &s->entry[i];
        if (entry_is_whole(c, s, en, taken)) {
            entry_link(s, en);
        } else {
            entry_void(en);
            WRITE(en->next, s->free_entry);
            s->free_entry = i;
        }
    }
    for (uint16_t n = CHUNKS; n-- > 0;) {
        if (taken[n]) continue;
        WRITE(s->next_chunk[n], s->free_chunk);
        s->free_chunk = n;
        s->free_chunks++;
    }
    change_end(c, s);
}

/* --- the files --- */

static void path_of_table(const struct session_cache *c, const char *suffix, char out[4096])
{
    snprintf(out, 4096, "%s/session_cache-%d%s", c->run_dir, LAYOUT, suffix);
}

static void unmap(struct session_cache *c)
{
    if (c->table != NULL) munmap(c->table, c->mapped_bytes);
    c->table = NULL;
    c->number = 0;
}

/* Maps the table that is called `number`, if it is there. */
static bool map_table(struct session_cache *c, uint32_t number, struct err *e)
{
    char path[4096];
    struct stat st;
    path_of_table(c, "", path);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) != 0) {
        err_set(e, ERR_INTERNAL, "%s: %s", path, strerror(errno));
        goto out;
    }
    if ((size_t)st.st_size < sizeof(struct table) + SET_BYTES) {
        err_set(e, ERR_INTERNAL, "%s: too short", path);
        goto out;
    }
    void *at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        err_set(e, ERR_INTERNAL, "%s: cannot be mapped: %s", path, strerror(errno));
        goto out;
    }
    madvise(at, (size_t)st.st_size, MADV_RANDOM); /* sessions lie anywhere in it; what lies beside them is not needed */
    c->table = at;
    c->mapped_bytes = (size_t)st.st_size;
    c->number = number;
    if (c->table->magic != MAGIC || c->table->number != number ||
        c->table->sets_at + (size_t)c->table->sets * SET_BYTES > c->mapped_bytes) {
        err_set(e, ERR_INTERNAL, "%s: is not the one in use", path);
        unmap(c);
    }
out:
    if (fd >= 0) close(fd);
    return c->table != NULL;
}

/* Goes over to the table that is in use now. A process that cannot follow could not tell the others of its writes
 * either: then nobody may have a cache. */
static void follow(struct session_cache *c, uint32_t number)
{
    struct err e = { 0 };
    unmap(c);
    if (number == 0 || map_table(c, number, &e)) return;
    if (atomic_compare_exchange_strong(&c->control->current, &number, 0))
        log_warn("session cache is off, this process cannot join: error=\"%s\"", e.text);
}

/* The set and hash of a session; false while the cache is off, or for an id that is never kept. */
static inline bool locate(struct session_cache *c, const char *id, struct session *sn)
{
    uint64_t word[SESSION_CACHE_MOST_ID_BYTES / 8] = { 0 };
    uint32_t current = READ(c->control->current);
    if (current != c->number) follow(c, current);
    sn->id = id;
    sn->id_bytes = strnlen(id, SESSION_CACHE_MOST_ID_BYTES + 1);
    if (c->table == NULL || sn->id_bytes == 0 || sn->id_bytes > SESSION_CACHE_MOST_ID_BYTES) return false;
    memcpy(word, id, sn->id_bytes);
    uint64_t hash = digest(word, content_words(sn->id_bytes), c->table->seed);
    sn->hash = (uint32_t)hash;
    sn->set = (struct set *)((char *)c->table + c->table->sets_at +
                             ((hash >> 32) * c->table->sets >> 32) * (size_t)SET_BYTES);
    return true;
}

static size_t table_sets(int64_t bytes)
{
    return bytes < SET_BYTES ? 1 : (size_t)bytes / SET_BYTES;
}

/* Makes a table under a name that nobody knows yet. Reserved, since a store into a hole on a full disk is a SIGBUS. */
static bool make_table(const struct session_cache *c, const char *path, uint32_t number, struct err *e)
{
    struct table t = { .magic = MAGIC, .number = number, .sets = (uint32_t)table_sets(c->bytes) };
    bool ok = false;
    t.sets_at = (sizeof t + t.sets * sizeof t.fill[0] + 4095) / 4096 * 4096;
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return err_set(e, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    off_t bytes = (off_t)(t.sets_at + (uint64_t)t.sets * SET_BYTES);
    int rc = posix_fallocate(fd, 0, bytes);
    if (rc != 0) {
        err_set(e, ERR_UNAVAILABLE, "%s: %lld bytes cannot be reserved: %s", path, (long long)bytes, strerror(rc));
    } else if (getrandom(&t.seed, sizeof t.seed, 0) != sizeof t.seed || pwrite(fd, &t, sizeof t, 0) != sizeof t) {
        err_set(e, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    } else {
        ok = true;
    }
    close(fd);
    if (!ok) unlink(path);
    return ok;
}

/* Who still uses the old table when we take it out of use has seen so after its write to Redis: whoever fills the new
 * one asks Redis later than that, and gets that write or a newer one. */
static bool replace_table(struct session_cache *c, struct err *e)
{
    char path[4096], new_path[4096];
    uint32_t number = c->control->last_number + 1;
    if (number == 0) number = 1;
    path_of_table(c, "", path);
    path_of_table(c, ".new", new_path);
    atomic_store(&c->control->current, 0);
    atomic_fetch_add(&c->control->generation, 1); /* so that no epoch of the old table is one of the new */
    unlink(path); /* first: its memory is free as soon as those who have it mapped notice */
    if (c->bytes == 0) return true;
    if (!make_table(c, new_path, number, e)) return false;
    if (rename(new_path, path) != 0) return err_set(e, ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    c->control->last_number = number;
    atomic_store(&c->control->current, number);
    return true;
}

/* Do processes live that know only other layouts? They cannot be told of writes, so neither side may have a cache. */
static bool strangers_live(const struct session_cache *c)
{
    return bytes_are_locked(c->fd, LAYOUT_LOCK(0), LAYOUT) ||
           bytes_are_locked(c->fd, LAYOUT_LOCK(LAYOUT + 1), LAYOUTS_MOST - LAYOUT - 1);
}

/* Makes the table in use what our options say, if it can be; the creation lock is held. */
static bool establish(struct session_cache *c, struct err *e)
{
    if (strangers_live(c)) {
        atomic_store(&c->control->current, 0);
        return err_set(e, ERR_UNAVAILABLE, "processes of another version are still running");
    }
    follow(c, atomic_load(&c->control->current));
    if (c->table != NULL && c->bytes > 0 && c->table->sets == table_sets(c->bytes)) return true;
    if (c->bytes == SESSION_CACHE_AS_IT_IS || (c->table == NULL && c->bytes == 0)) return true;
    unmap(c);
    if (!replace_table(c, e)) return false;
    follow(c, atomic_load(&c->control->current));
    return true;
}

void session_cache_tend(struct session_cache *c)
{
    struct err e = { 0 };
    uint32_t current = atomic_load(&c->control->current);
    if (current != c->number) follow(c, current);
    if (c->table != NULL || c->bytes <= 0) return;
    if (!lock_bytes(c->fd, F_OFD_SETLKW, F_WRLCK, CREATION_LOCK, 1)) return;
    bool ok = establish(c, &e);
    lock_bytes(c->fd, F_OFD_SETLK, F_UNLCK, CREATION_LOCK, 1);
    if (ok && c->warned) log_info("session cache is on: bytes=%lld", (long long)c->bytes);
    if (!ok && !c->warned) log_warn("session cache is off: error=\"%s\"", e.text);
    c->warned = !ok;
}

static bool map_control(struct session_cache *c, const char *path, struct err *e)
{
    int rc = posix_fallocate(c->fd, 0, sizeof(struct control));
    if (rc != 0) return err_set(e, ERR_INPUT, "RUN_DIR: %s cannot be reserved: %s", path, strerror(rc));
    void *at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    if (at == MAP_FAILED) return err_set(e, ERR_INTERNAL, "%s: cannot be mapped: %s", path, strerror(errno));
    c->control = at;
    if (c->control->magic != 0 && c->control->magic != MAGIC)
        return err_set(e, ERR_INPUT, "RUN_DIR: %s is not ours", path);
    c->control->magic = MAGIC;
    return true;
}

/* Makes this process one of those that others take for living. */
static bool find_place(struct session_cache *c, const char *path, struct err *e)
{
    if (!lock_bytes(c->fd, F_OFD_SETLK, F_RDLCK, LAYOUT_LOCK(LAYOUT), 1))
        return err_set(e, ERR_INTERNAL, "%s: cannot be locked: %s", path, strerror(errno));
    for (uint32_t n = 0; n < PLACES; n++) {
        if (!lock_bytes(c->fd, F_OFD_SETLK, F_WRLCK, PLACE_LOCK(n), 1)) continue;
        uint32_t incarnation = atomic_fetch_add(&c->control->incarnation[n], 1) + 1;
        c->me = (uint64_t)incarnation << 16 | (n + 1);
        return true;
    }
    return err_set(e, ERR_UNAVAILABLE, "%s: %d processes use it already", path, PLACES);
}

/* Where nobody lives nobody was told of changes: copies of that time are unproven. Those of another start of the
 * machine are of an age that nobody can tell. */
static void forget_the_past(struct session_cache *c)
{
    if (c->control->boot != clock_boot()) {
        atomic_store(&c->control->current, 0);
        c->control->boot = clock_boot();
    }
    if (!bytes_are_locked(c->fd, PLACE_LOCK(0), PLACES)) atomic_fetch_add(&c->control->generation, 1);
}

struct session_cache *session_cache_open(const char *run_dir, int64_t bytes, struct err *e)
{
    char path[4096];
    bool ok = false;
    struct session_cache *c = mem_alloc(sizeof *c);
    c->bytes = bytes;
    c->fd = -1;
    if (strlen(run_dir) >= sizeof c->run_dir) {
        err_set(e, ERR_INPUT, "RUN_DIR is longer than %zu bytes", sizeof c->run_dir - 1);
        goto out;
    }
    strcpy(c->run_dir, run_dir);
    snprintf(path, sizeof path, "%s/session_cache", run_dir);
    c->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (c->fd < 0 || !lock_bytes(c->fd, F_OFD_SETLKW, F_WRLCK, CREATION_LOCK, 1)) {
        err_set(e, ERR_INPUT, "RUN_DIR=%s: %s cannot be opened: %s", run_dir, path, strerror(errno));
        goto out;
    }
    if (!map_control(c, path, e)) goto out;
    forget_the_past(c);
    if (!find_place(c, path, e)) goto out;
    struct err why = { 0 };
    c->warned = !establish(c, &why);
    if (c->warned) log_warn("session cache is off: error=\"%s\"", why.text);
    lock_bytes(c->fd, F_OFD_SETLK, F_UNLCK, CREATION_LOCK, 1);
    ok = true;
out:
    if (ok) return c;
    session_cache_close(c);
    return NULL;
}

void session_cache_close(struct session_cache *c)
{
    if (c == NULL) return;
    unmap(c);
    if (c->control != NULL) munmap(c->control, sizeof *c->control);
    if (c->fd >= 0) close(c->fd); /* and with it our locks */
    free(c);
}

/* --- the operations --- */

enum look { LOOK_BUSY, LOOK_NONE, LOOK_FOUND };

/* What a reader saw at one moment; the content is in the scratch. */
struct sight {
    struct entry *entry;
    struct session_copy copy;
    uint64_t stamp;
    size_t id_bytes, doc_bytes;
};

/* One attempt to see the copy; LOOK_BUSY if somebody was changing the set meanwhile. */
static enum look look(struct session_cache *c, const struct session *sn, struct sight *st)
{
    struct set *s = sn->set;
    uint64_t changes = READ(s->changes);
    if (changes == 0) return LOOK_NONE;
    if (changes % 2 != 0) return LOOK_BUSY;
    struct entry *en = entry_find(s, sn->hash);
    if (en == NULL) return READ(s->changes) == changes ? LOOK_NONE : LOOK_BUSY;
    st->entry = en;
    st->stamp = READ(en->stamp);
    st->copy.expires_at_ms = READ(en->expires_at_ms);
    st->copy.filled_ms = READ(en->filled_ms);
    st->id_bytes = READ(en->id_bytes);
    st->doc_bytes = READ(en->doc_bytes);
    size_t bytes = st->id_bytes + st->doc_bytes;
    size_t words = bytes <= MOST_CONTENT_BYTES ? content_read(c, s, READ(en->chunk), bytes) : 0;
    bool whole = words > 0 && digest(c->scratch, words, entry_seed(c, en)) == READ(en->sum);
    if (READ(s->changes) != changes) return LOOK_BUSY;
    bool same_id = st->id_bytes == sn->id_bytes && memcmp(c->scratch, sn->id, sn->id_bytes) == 0;
    return whole && same_id ? LOOK_FOUND : LOOK_NONE;
}

/* A change takes less than a microsecond; who sees it go on for a few looks whether its owner is dead. */
#define LOOKS 1000
static enum look look_patiently(struct session_cache *c, const struct session *sn, struct sight *st)
{
    enum look seen = LOOK_BUSY;
    for (int i = 0; i < LOOKS && seen == LOOK_BUSY; i++) seen = look(c, sn, st);
    if (seen != LOOK_BUSY || !set_take(c, sn->set)) return seen;
    seen = look(c, sn, st);
    set_leave(sn->set);
    return seen;
}

/* Takes an expired copy out, so that it is counted once and makes room; if the set is busy, the next one who comes
 * by does. */
static void retire(struct session_cache *c, const struct session *sn, int64_t expired_ms)
{
    if (!set_take(c, sn->set)) return;
    struct entry *en = entry_find(sn->set, sn->hash);
    if (en != NULL && READ(en->expires_at_ms) == expired_ms) {
        set_remove(c, sn->set, en);
        metrics_add(METRIC_cache_expiries_total, 1);
    }
    set_leave(sn->set);
}

static bool find(struct session_cache *c, const struct session *sn, struct sight *st)
{
    if (look_patiently(c, sn, st) != LOOK_FOUND) return false;
    uint64_t tide = READ(sn->set->tide[sn->hash % BUCKETS]);
    if (is_dead(st->stamp, tide)) return false;
    if (st->copy.expires_at_ms != 0 && st->copy.expires_at_ms <= clock_wall_ms()) {
        retire(c, sn, st->copy.expires_at_ms);
        return false;
    }
    if (READ(st->entry->used) == 0) WRITE(st->entry->used, 1);
    st->copy.proven = st->stamp == stamp_of(c, tide);
    return true;
}

bool session_cache_is_on(struct session_cache *c)
{
    uint32_t current = READ(c->control->current);
    if (current != c->number) follow(c, current);
    return c->table != NULL;
}

bool session_cache_get(struct session_cache *c, const char *id, struct buf *doc, struct session_copy *copy)
{
    struct session sn;
    struct sight st;
    bool found = locate(c, id, &sn) && find(c, &sn, &st);
    if (found) {
        buf_append(doc, (char *)c->scratch + st.id_bytes, st.doc_bytes);
        found = !buf_overflowed(doc);
        *copy = st.copy;
    }
    return found;
}

/* One attempt; a set that is just being changed is no copy to go by. */
bool session_cache_look(struct session_cache *c, const char *id, struct session_copy *copy)
{
    struct session sn;
    if (!locate(c, id, &sn)) return false;
    uint64_t changes = READ(sn.set->changes), tide = READ(sn.set->tide[sn.hash % BUCKETS]);
    struct entry *en = changes != 0 && changes % 2 == 0 ? entry_find(sn.set, sn.hash) : NULL;
    if (en == NULL) return false;
    uint64_t stamp = READ(en->stamp);
    *copy = (struct session_copy){ READ(en->expires_at_ms), READ(en->filled_ms), stamp == stamp_of(c, tide) };
    return READ(sn.set->changes) == changes && !is_dead(stamp, tide) &&
           (copy->expires_at_ms == 0 || copy->expires_at_ms > clock_wall_ms());
}

uint64_t session_cache_epoch(struct session_cache *c, const char *id)
{
    struct session sn;
    return locate(c, id, &sn) ? stamp_of(c, atomic_load(&sn.set->tide[sn.hash % BUCKETS])) : 0;
}

void session_cache_put(struct session_cache *c, const char *id, struct bytes doc, int64_t expires_at_ms, uint64_t epoch)
{
    struct session sn;
    if (!locate(c, id, &sn) || doc.len > SESSION_CACHE_MOST_DOC_BYTES || !set_take(c, sn.set)) return;
    if (stamp_of(c, atomic_load(&sn.set->tide[sn.hash % BUCKETS])) == epoch)
        set_store(c, &sn, doc, expires_at_ms, epoch);
    set_leave(sn.set);
}

/* Took the set, or killed the bucket: whoever has the set may be about to write what is older. */
static bool take_or_kill(struct session_cache *c, const struct session *sn)
{
    bool taken = set_take(c, sn->set);
    if (!taken) bucket_kill(&sn->set->tide[sn->hash % BUCKETS]);
    return taken;
}

/* The tide has risen since `epoch` to `was`: by invalidations only? Every other change that was noted since has left a
 * copy with a stamp above `epoch`, or a dead one, or none. A new generation may be a new table with epochs of its own.
 */
static bool only_invalidated(struct session_cache *c, const struct entry *en, uint64_t was, uint64_t epoch)
{
    if (en == NULL || stamp_of(c, was) >> 32 != epoch >> 32) return false;
    uint64_t stamp = READ(en->stamp);
    return !is_dead(stamp, was) && (int32_t)((uint32_t)stamp - (uint32_t)epoch) <= 0;
}

bool session_cache_note_write(struct session_cache *c, const char *id, struct bytes doc, int64_t expires_at_ms,
                              uint64_t epoch)
{
    struct session sn;
    if (!locate(c, id, &sn)) return true; /* nobody keeps anything */
    if (!take_or_kill(c, &sn)) return false;
    uint64_t was = set_raise(c, sn.set, sn.hash);
    struct entry *en = entry_find(sn.set, sn.hash);
    bool latest = stamp_of(c, was) == epoch, known = latest || only_invalidated(c, en, was, epoch);
    if (!latest) set_raise(c, sn.set, sn.hash); /* above the stamp of the copy, which is thereby unproven */
    if (known && doc.len <= SESSION_CACHE_MOST_DOC_BYTES)
        set_store(c, &sn, doc, expires_at_ms, epoch >> 32 << 32 | (uint32_t)((was >> 32) + 1));
    else if (en != NULL)
        set_remove(c, sn.set, en);
    set_leave(sn.set);
    return known;
}

void session_cache_drop(struct session_cache *c, const char *id)
{
    struct session sn;
    if (!locate(c, id, &sn) || !take_or_kill(c, &sn)) return;
    set_raise(c, sn.set, sn.hash);
    struct entry *en = entry_find(sn.set, sn.hash);
    if (en != NULL) set_remove(c, sn.set, en);
    set_leave(sn.set);
}

void session_cache_invalidate(struct session_cache *c, const char *id)
{
    struct session sn;
    if (!locate(c, id, &sn)) return;
    if (set_take(c, sn.set)) {
        set_raise(c, sn.set, sn.hash);
        set_leave(sn.set);
    } else {
        atomic_fetch_add(&sn.set->tide[sn.hash % BUCKETS], EPOCH_ONE);
    }
}

void session_cache_invalidate_all(struct session_cache *c)
{
    atomic_fetch_add(&c->control->generation, 1);
}

void session_cache_stats(struct session_cache *c, struct session_cache_stats *stats)
{
    uint32_t current = READ(c->control->current);
    *stats = (struct session_cache_stats){ 0 };
    if (current != c->number) follow(c, current);
    if (c->table == NULL) return;
    stats->limit_bytes = (int64_t)c->table->sets * SET_BYTES;
    for (size_t i = 0; i < c->table->sets; i++) {
        uint32_t fill = READ(c->table->fill[i]);
        stats->entries += fill >> 16;
        stats->bytes += (int64_t)((fill & 0xffff) * CHUNK_BYTES);
    }
}
