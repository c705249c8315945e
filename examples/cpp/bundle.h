/* Reading a bundle's files in plain C: just enough JSON, safetensors, .npy and .zip.
 *
 * docs/bundle-format.md says what the files hold. All of it is for little-endian machines. What is
 * read is kept until the program ends; whatever is wrong ends it with one sentence and exit code 1.
 * Hashes are not checked: the comparison with golden.npz is what these programs go by.
 */
#ifndef VCONV_EXAMPLES_BUNDLE_H
#define VCONV_EXAMPLES_BUNDLE_H

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES ((size_t)1 << 31) /* of one file or array: what is larger is damaged */

typedef struct bytes {
    char name[1024]; /* for messages */
    char* data;      /* with a 0 behind its end */
    size_t size;
} bytes;

__attribute__((noreturn, format(printf, 1, 2))) static inline void stop(const char* sentence, ...) {
    va_list values;
    va_start(values, sentence);
    vfprintf(stderr, sentence, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

static inline void* memory(size_t size) {
    void* block = calloc(1, size ? size : 1);
    if (!block) stop("There is no memory for %zu bytes.", size);
    return block;
}

static inline bytes read_file(const char* folder, const char* name) {
    bytes file;
    snprintf(file.name, sizeof file.name, "%s/%s", folder, name);
    FILE* stream = fopen(file.name, "rb");
    if (!stream) stop("%s: cannot be opened (%s).", file.name, strerror(errno));
    long size = fseek(stream, 0, SEEK_END) ? -1 : ftell(stream);
    if (size < 0 || (size_t)size > MOST_BYTES) stop("%s: is no file to read.", file.name);
    rewind(stream);
    file.size = (size_t)size;
    file.data = (char*)memory(file.size + 1);
    if (fread(file.data, 1, file.size, stream) != file.size)
        stop("%s: cannot be read to its end.", file.name);
    fclose(stream);
    return file;
}

/* ---- JSON: steps over values, to find the one that is asked for ---- */

static inline const char* json_space(const char* at) { return at + strspn(at, " \t\r\n"); }

static inline const char* json_skip(const char* at) {
    int depth = 0;
    do {
        if (*at == '"') {
            for (++at; *at && *at != '"'; ++at)
                if (*at == '\\' && at[1]) ++at;
            if (*at) ++at;
        } else if (*at == '{' || *at == '[') {
            ++depth, ++at;
        } else if (*at == '}' || *at == ']') {
            --depth, ++at;
        } else {
            at += depth ? 1 : strcspn(at, ",}] \t\r\n");
        }
    } while (depth > 0 && *at);
    return at;
}

/* The value of a key in the object that begins at `at`; NULL where there is none. */
static inline const char* json_member(const char* at, const char* key) {
    size_t length = strlen(key);
    if (!at || *(at = json_space(at)) != '{') return NULL;
    for (at = json_space(at + 1); *at == '"'; at = json_space(at)) {
        const char* name = at + 1;
        at = json_space(json_skip(at));
        if (*at != ':') return NULL;
        at = json_space(at + 1);
        if (!strncmp(name, key, length) && name[length] == '"') return at;
        at = json_space(json_skip(at));
        if (*at == ',') ++at;
    }
    return NULL;
}

/* How many values an array has. */
static inline size_t json_items(const char* at) {
    size_t items = 0;
    if (!at || *at != '[') return 0;
    for (at = json_space(at + 1); *at && *at != ']'; ++items) {
        const char* end = json_space(json_skip(at));
        if (end == at) return 0;
        at = *end == ',' ? json_space(end + 1) : end;
    }
    return items;
}

/* A whole number of the manifest by its path, such as "geometry.chunk.skip". */
static inline uint32_t manifest_number(const bytes* manifest, const char* path) {
    const char* at = manifest->data;
    char keys[128];
    snprintf(keys, sizeof keys, "%s", path);
    for (char* key = strtok(keys, "."); key; key = strtok(NULL, ".")) at = json_member(at, key);
    char* end = NULL;
    unsigned long number = at ? strtoul(at, &end, 10) : 0;
    if (!at || end == at || *at == '-' || number > UINT32_MAX)
        stop("%s: %s is missing or not a whole number.", manifest->name, path);
    return (uint32_t)number;
}

/* manifest.json, if it is of a format that these programs know. */
static inline bytes read_manifest(const char* folder) {
    bytes manifest = read_file(folder, "manifest.json");
    uint32_t version = manifest_number(&manifest, "format_version");
    if (version < 1 || version > 2)
        stop("%s: is of format version %u; this program reads 1 and 2.", manifest.name, version);
    return manifest;
}

/* ---- safetensors: the length of a JSON header, the header, the tensors ---- */

/* A float32 tensor of `count` numbers. */
static inline const float* tensor(const bytes* file, const char* name, size_t count) {
    uint64_t length = 0;
    if (file->size >= 8) memcpy(&length, file->data, 8);
    if (file->size < 8 || length > file->size - 8) stop("%s: is damaged.", file->name);
    char* header = (char*)memory((size_t)length + 1);
    memcpy(header, file->data + 8, (size_t)length);
    const char* entry = json_member(header, name);
    const char* type = json_member(entry, "dtype");
    const char* offsets = json_member(entry, "data_offsets");
    char* next = NULL;
    if (!type || strncmp(type, "\"F32\"", 5) || !offsets || *offsets != '[')
        stop("%s: has no float32 tensor %s.", file->name, name);
    uint64_t begin = strtoull(offsets + 1, &next, 10);
    uint64_t end = strtoull(next + strspn(next, ", "), NULL, 10);
    if (end > file->size - 8 - length || begin > end || end - begin != count * sizeof(float))
        stop("%s: the tensor %s has not the %zu numbers that the manifest asks for.", file->name,
             name, count);
    free(header);
    float* numbers = (float*)memory(count * sizeof(float)); /* aligned, unlike the file's */
    memcpy(numbers, file->data + 8 + length + begin, count * sizeof(float));
    return numbers;
}

/* ---- deflate (RFC 1951), the compression in a .zip: a bit at a time, as zlib's puff does ---- */

typedef struct inflating {
    const uint8_t *in, *in_end;
    uint8_t *out, *out_begin, *out_end;
    uint32_t held; /* bits taken from `in` and not yet used, the next one lowest */
    int count;     /* how many */
    int failed;
} inflating;

/* How many codes there are of each length, and their symbols in order. */
typedef struct huffman {
    uint16_t count[16], symbol[288];
} huffman;

static inline uint32_t take_bits(inflating* z, int bits) {
    while (z->count < bits) {
        if (z->in == z->in_end) return z->failed = 1, 0;
        z->held |= (uint32_t)*z->in++ << z->count;
        z->count += 8;
    }
    uint32_t value = z->held & ((1u << bits) - 1);
    z->held >>= bits;
    z->count -= bits;
    return value;
}

static inline void make_codes(huffman* code, const uint8_t* lengths, int symbols) {
    uint16_t first[17] = {0};
    memset(code, 0, sizeof *code);
    for (int s = 0; s < symbols; ++s) ++code->count[lengths[s]];
    code->count[0] = 0;
    for (int n = 1; n < 16; ++n) first[n + 1] = (uint16_t)(first[n] + code->count[n]);
    for (int s = 0; s < symbols; ++s)
        if (lengths[s]) code->symbol[first[lengths[s]]++] = (uint16_t)s;
}

static inline int take_symbol(inflating* z, const huffman* code) {
    int value = 0, first = 0, index = 0;
    for (int n = 1; n < 16 && !z->failed; ++n) {
        value |= (int)take_bits(z, 1);
        if (value < first) break; /* more codes than there can be */
        if (value - first < code->count[n]) return code->symbol[index + value - first];
        index += code->count[n];
        first = (first + code->count[n]) << 1;
        value <<= 1;
    }
    return z->failed = 1, 0;
}

/* The code lengths of a block, which are themselves coded. */
static inline void take_codes(inflating* z, huffman* literals, huffman* distances) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[320] = {0};
    int n_literals = (int)take_bits(z, 5) + 257, n_distances = (int)take_bits(z, 5) + 1;
    int n_lengths = (int)take_bits(z, 4) + 4, total = n_literals + n_distances;
    for (int i = 0; i < n_lengths; ++i) lengths[order[i]] = (uint8_t)take_bits(z, 3);
    make_codes(literals, lengths, 19);
    memset(lengths, 0, sizeof lengths);
    for (int i = 0; i < total && !z->failed;) {
        int symbol = take_symbol(z, literals), repeat = 1, length = symbol;
        if (symbol == 16) length = i ? lengths[i - 1] : 0, repeat = 3 + (int)take_bits(z, 2);
        if (symbol == 17) length = 0, repeat = 3 + (int)take_bits(z, 3);
        if (symbol == 18) length = 0, repeat = 11 + (int)take_bits(z, 7);
        for (; repeat && i < total; --repeat) lengths[i++] = (uint8_t)length;
    }
    make_codes(literals, lengths, n_literals);
    make_codes(distances, lengths + n_literals, n_distances);
}

static inline void take_block(inflating* z, const huffman* literals, const huffman* distances) {
    static const uint16_t bases[29] = {3,  4,  5,  6,  7,  8,  9,  10,  11,  13,
                                       15, 17, 19, 23, 27, 31, 35, 43,  51,  59,
                                       67, 83, 99, 115, 131, 163, 195, 227, 258};
    for (;;) {
        int symbol = take_symbol(z, literals);
        if (z->failed || symbol == 256) return;
        if (symbol < 256) {
            if (z->out == z->out_end) z->failed = 1;
            if (!z->failed) *z->out++ = (uint8_t)symbol;
            continue;
        }
        int index = symbol - 257;
        if (index > 28) index = 28, z->failed = 1;
        int extra = index < 8 || index == 28 ? 0 : index / 4 - 1;
        size_t length = bases[index] + take_bits(z, extra);
        int far = take_symbol(z, distances);
        if (far > 29) far = 29, z->failed = 1;
        size_t distance = far < 4 ? (size_t)far + 1
                                  : (((size_t)2 + (far & 1)) << (far / 2 - 1)) + 1 +
                                        take_bits(z, far / 2 - 1);
        if (z->failed || distance > (size_t)(z->out - z->out_begin) ||
            length > (size_t)(z->out_end - z->out)) {
            z->failed = 1;
            return;
        }
        for (; length; --length, ++z->out) *z->out = z->out[-(ptrdiff_t)distance];
    }
}

static inline int inflate_raw(const char* in, size_t in_size, char* out, size_t out_size) {
    inflating z = {(const uint8_t*)in, (const uint8_t*)in + in_size,
                   (uint8_t*)out,      (uint8_t*)out,
                   (uint8_t*)out + out_size, 0, 0, 0};
    huffman literals, distances;
    for (uint32_t last = 0; !last && !z.failed;) {
        last = take_bits(&z, 1);
        uint32_t kind = take_bits(&z, 2);
        if (kind == 0) {
            z.held = 0, z.count = 0; /* the rest of the byte */
            size_t size = take_bits(&z, 16);
            take_bits(&z, 16); /* the size again, inverted */
            if (size > (size_t)(z.in_end - z.in) || size > (size_t)(z.out_end - z.out)) return 0;
            memcpy(z.out, z.in, size);
            z.in += size, z.out += size;
        } else if (kind == 1) {
            uint8_t lengths[320];
            for (int s = 0; s < 288; ++s)
                lengths[s] = (uint8_t)(s < 144 ? 8 : s < 256 ? 9 : s < 280 ? 7 : 8);
            memset(lengths + 288, 5, 30);
            make_codes(&literals, lengths, 288);
            make_codes(&distances, lengths + 288, 30);
            take_block(&z, &literals, &distances);
        } else if (kind == 2) {
            take_codes(&z, &literals, &distances);
            if (!z.failed) take_block(&z, &literals, &distances);
        } else {
            return 0;
        }
    }
    return !z.failed && z.out == z.out_end;
}

/* ---- .npz: a .zip of .npy files ---- */

typedef struct array {
    char type[4];   /* as numpy writes it: <f4, <i8, |u1 */
    size_t rows;    /* the first dimension */
    size_t columns; /* the second, or 1 */
    const void* data;
} array;

static inline uint32_t little(const bytes* file, size_t at, int size) {
    uint32_t number = 0;
    if (at > file->size || file->size - at < (size_t)size) stop("%s: is damaged.", file->name);
    memcpy(&number, file->data + at, (size_t)size);
    return number;
}

static inline array npy(const bytes* file) {
    array found;
    memset(&found, 0, sizeof found);
    uint32_t wide = little(file, 6, 1) > 1; /* the format's major version */
    size_t start = wide ? 12 : 10;
    size_t length = little(file, 8, wide ? 4 : 2);
    if (memcmp(file->data, "\x93NUMPY", 6) || length > file->size - start)
        stop("%s: is damaged.", file->name);
    char* header = (char*)memory(length + 1);
    memcpy(header, file->data + start, length);
    const char* shape = strstr(header, "'shape': (");
    const char* type = strstr(header, "'descr': '");
    if (!shape || !type || !strstr(header, "'fortran_order': False"))
        stop("%s: is no array that this program reads.", file->name);
    memcpy(found.type, type + 10, 3);
    char* next;
    found.rows = strtoull(shape + 10, &next, 10);
    next += strspn(next, ", ");
    found.columns = *next == ')' ? 1 : strtoull(next, NULL, 10);
    size_t width = (size_t)(found.type[2] - '0');
    size_t left = file->size - start - length;
    if (found.rows > MOST_BYTES || found.columns > MOST_BYTES || width > 8 ||
        found.rows * found.columns > MOST_BYTES || found.rows * found.columns * width != left)
        stop("%s: is damaged.", file->name);
    free(header);
    void* data = memory(left); /* aligned, unlike the file's */
    memcpy(data, file->data + start + length, left);
    found.data = data;
    return found;
}

/* Where a .zip's directory has the entry of an array; 0 where there is none. */
static inline size_t npz_entry(const bytes* npz, const char* name) {
    size_t end = npz->size < 22 ? 0 : npz->size - 22, length = strlen(name);
    while (end && little(npz, end, 4) != 0x06054b50) --end;
    if (!end) stop("%s: is no .npz file.", npz->name);
    size_t entry = little(npz, end + 16, 4);
    for (uint32_t left = little(npz, end + 10, 2); left; --left) {
        size_t size = little(npz, entry + 28, 2);
        size_t others = (size_t)little(npz, entry + 30, 2) + little(npz, entry + 32, 2);
        (void)little(npz, entry + 46 + size, 0);
        const char* found = npz->data + entry + 46;
        if (size == length + 4 && !memcmp(found, name, length) &&
            !memcmp(found + length, ".npy", 4))
            return entry;
        entry += 46 + size + others;
    }
    return 0;
}

/* An array of a .npz, which must be of this type. */
static inline array npz_array(const bytes* npz, const char* name, const char* type) {
    size_t entry = npz_entry(npz, name);
    if (!entry) stop("%s: has no array %s.", npz->name, name);
    uint32_t method = little(npz, entry + 10, 2), packed = little(npz, entry + 20, 4);
    size_t local = little(npz, entry + 42, 4);
    size_t start = local + 30 + little(npz, local + 26, 2) + little(npz, local + 28, 2);
    bytes file;
    snprintf(file.name, sizeof file.name, "%.900s: %s", npz->name, name);
    file.size = little(npz, entry + 24, 4);
    if (start > npz->size || packed > npz->size - start || file.size > MOST_BYTES ||
        (method != 0 && method != 8) || (method == 0 && packed != file.size))
        stop("%s: is damaged.", file.name);
    file.data = (char*)memory(file.size + 1);
    if (method == 0) memcpy(file.data, npz->data + start, packed);
    if (method == 8 && !inflate_raw(npz->data + start, packed, file.data, file.size))
        stop("%s: is damaged.", file.name);
    array found = npy(&file);
    if (strcmp(found.type, type)) stop("%s: is %s instead of %s.", file.name, found.type, type);
    free(file.data);
    return found;
}

/* ---- golden.npz, and what is held against it ---- */

/* Uniforms in (0, 1), here of a small generator (xorshift64*): any will do. The upper 23 bits and a
 * half, so that there is neither a 0 nor a 1. */
static inline float next_uniform(uint64_t* state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return ((float)((*state * 0x2545f4914f6cdd1dull) >> 41) + 0.5f) / 8388608.0f;
}

#define BOUND 1e-4 /* for latents, conditioning and logits in float32, by docs/bundle-format.md */

/* The largest absolute difference; infinite where one is not a number. */
static inline double difference(const float* found, const float* wanted, size_t count) {
    double most = 0;
    for (size_t i = 0; i < count; ++i) {
        double gap = (double)found[i] - (double)wanted[i];
        if (gap < 0) gap = -gap;
        if (!(gap <= most)) most = gap >= 0 ? gap : HUGE_VAL;
    }
    return most;
}

#endif
