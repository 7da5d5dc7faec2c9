/* The functions that the tests of the runner call. One file, so that it also shows what plain C looks like. */
#include <denizen.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef TEST_ABI
#define TEST_ABI DZ_ABI_VERSION
#endif
DZ_EXPORT const uint32_t denizen_plugin_abi = TEST_ABI;

static const dz_host *host;

static dz_slice bytes(const void *ptr, size_t len) {
    dz_slice slice = {ptr, len};
    return slice;
}

static dz_slice text(const char *string) { return bytes(string, strlen(string)); }

static int32_t reply(dz_call *call, const void *ptr, size_t len) {
    uint8_t *buffer;
    int32_t status = host->reply_alloc(call, len, &buffer);
    if (status == 0 && len > 0) memcpy(buffer, ptr, len);
    return status;
}

static int32_t reply_text(dz_call *call, const char *string) {
    host->reply_content_type(call, text("text/plain"));
    return reply(call, string, strlen(string));
}

static long number_of(dz_call *call) {
    dz_slice in;
    char digits[32] = {0};
    if (host->input(call, &in) != 0 || in.len >= sizeof digits) return -1;
    memcpy(digits, in.ptr, in.len);
    return atol(digits);
}

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int32_t echo(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    int32_t status = host->input(call, &in);
    if (status != 0) return status;
    if ((uintptr_t)in.ptr % 16 != 0) return 99;
    return reply(call, in.ptr, in.len);
}

/* The input behind its first byte, which says how many bytes more are left out at its end, in units of a kilobyte. */
static int32_t inner(void *data, dz_call *call) {
    (void)data;
    dz_slice in, again;
    int32_t status = host->input(call, &in);
    if (status != 0) return status;
    size_t cut = (size_t)in.ptr[0] * 1000;
    if (host->reply_bytes(call, bytes(in.ptr + 1, in.len - 1 - cut)) != 0) return 97;
    /* It is the whole reply, and the input is still there. */
    uint8_t *buffer;
    if (host->reply_bytes(call, in) != DZ_E_INVALID || host->reply_alloc(call, 1, &buffer) != DZ_E_INVALID) return 96;
    if (host->reply_write(call, in) != DZ_E_INVALID || host->reply_content_type(call, text("text/x-inner")) != 0) return 95;
    return host->input(call, &again) == 0 && again.ptr == in.ptr && again.len == in.len ? 0 : 94;
}

static int32_t add(void *data, dz_call *call) {
    (void)data;
    dz_value value;
    uint64_t count = 0;
    if (host->state_get(call, text("count"), &value) == 0) memcpy(&count, value.ptr, sizeof count);
    count++;
    int32_t status = host->state_put(call, text("count"), 7, bytes(&count, sizeof count));
    if (status != 0) return status;
    char out[32];
    snprintf(out, sizeof out, "%llu", (unsigned long long)count);
    return reply_text(call, out);
}

static int32_t count(void *data, dz_call *call) {
    (void)data;
    dz_value value;
    uint64_t count = 0;
    if (host->state_get(call, text("count"), &value) == 0) memcpy(&count, value.ptr, sizeof count);
    char out[32];
    snprintf(out, sizeof out, "%llu", (unsigned long long)count);
    return reply_text(call, out);
}

/* Appends its input to a record, after a nap if it says so: "sleep". */
static int32_t append(void *data, dz_call *call) {
    (void)data;
    static int inside;
    dz_slice in;
    dz_value value;
    if (host->input(call, &in) != 0) return 1;
    if (__sync_fetch_and_add(&inside, 1) != 0) return 77;
    if (in.len == 5 && memcmp(in.ptr, "sleep", 5) == 0) sleep_ms(100);
    char all[4096];
    size_t len = 0;
    if (host->state_get(call, text("all"), &value) == 0) {
        memcpy(all, value.ptr, value.len);
        len = value.len;
    }
    memcpy(all + len, in.ptr, in.len);
    len += in.len;
    int32_t status = host->state_put(call, text("all"), 0, bytes(all, len));
    __sync_fetch_and_sub(&inside, 1);
    return status == 0 ? reply(call, all, len) : status;
}

/* Read-only: comes back only when as many are inside as the input says. */
static int32_t meet(void *data, dz_call *call) {
    (void)data;
    static volatile long inside;
    long wanted = number_of(call);
    __sync_fetch_and_add(&inside, 1);
    for (int i = 0; i < 5000 && inside < wanted; i++) sleep_ms(1);
    return reply_text(call, inside >= wanted ? "met" : "alone");
}

static int32_t burn(void *data, dz_call *call) {
    (void)data;
    double until = now_ms() + (double)number_of(call);
    while (now_ms() < until) {
    }
    return reply_text(call, "burnt");
}

/* Never asks its host for anything that waits. */
static int32_t until_cancelled(void *data, dz_call *call) {
    (void)data;
    double until = now_ms() + 10000;
    uint64_t mark = 1;
    if (host->state_put(call, text("mark"), 0, bytes(&mark, sizeof mark)) != 0) return 1;
    while (now_ms() < until) {
        if (host->cancelled(call)) return DZ_E_CANCELLED;
    }
    return reply_text(call, "never cancelled");
}

static int32_t stream_echo(void *data, dz_call *call) {
    (void)data;
    static _Thread_local uint8_t buffer[30000];
    host->reply_content_type(call, text("application/x-echo"));
    for (;;) {
        size_t len;
        int32_t status = host->input_read(call, buffer, sizeof buffer, &len);
        if (status != 0) return status;
        if (len == 0) return 0;
        status = host->reply_write(call, bytes(buffer, len));
        if (status != 0) return status;
    }
}

/* A streaming input that is asked for as a whole. */
static int32_t stream_whole(void *data, dz_call *call) {
    (void)data;
    dz_slice in, again;
    int32_t status = host->input(call, &in);
    if (status != 0) return status;
    if (host->input(call, &again) != 0 || again.ptr != in.ptr) return 98;
    char out[32];
    snprintf(out, sizeof out, "%zu", in.len);
    return reply_text(call, out);
}

/* A streaming input that nobody reads. */
static int32_t stream_nothing(void *data, dz_call *call) {
    (void)data;
    return reply_text(call, "nothing");
}

static int32_t pour(void *data, dz_call *call) {
    (void)data;
    static _Thread_local uint8_t buffer[100000];
    long left = number_of(call);
    for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = (uint8_t)(i % 251);
    while (left > 0) {
        size_t len = left < (long)sizeof buffer ? (size_t)left : sizeof buffer;
        int32_t status = host->reply_write(call, bytes(buffer, len));
        if (status != 0) return status;
        left -= (long)len;
    }
    return 0;
}

static int32_t large(void *data, dz_call *call) {
    (void)data;
    long len = number_of(call);
    uint8_t *buffer;
    int32_t status = host->reply_alloc(call, (size_t)len, &buffer);
    if (status != 0) return status;
    if ((uintptr_t)buffer % 16 != 0) return 99;
    for (long i = 0; i < len; i++) {
        if (buffer[i] != 0) return 98;
        buffer[i] = (uint8_t)(i % 251);
    }
    return 0;
}

static int32_t refuse(void *data, dz_call *call) {
    (void)data;
    host->state_put(call, text("lost"), 0, text("x"));
    host->fail(call, DZ_FAIL_BAD_INPUT, text("not like this"));
    return 5;
}

static int32_t seven(void *data, dz_call *call) {
    (void)data;
    host->state_put(call, text("lost"), 0, text("x"));
    return 7;
}

static int32_t half(void *data, dz_call *call) {
    (void)data;
    uint64_t number = 0;
    host->state_put(call, text("kept"), 0, text("x"));
    if (host->commit(call, &number) != 0 || number == 0) return 90;
    host->state_put(call, text("lost"), 0, text("x"));
    return 6;
}

/* Commits something, if it is given anything, and takes the process along. */
static int32_t half_and_die(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    if (host->input(call, &in) != 0) return 89;
    if (in.len > 0) host->state_put(call, text("kept"), 0, text("x"));
    if (host->commit(call, NULL) != 0) return 90;
    host->state_put(call, text("lost"), 0, text("x"));
    _Exit(9);
}

static int32_t pour_and_fail(void *data, dz_call *call) {
    (void)data;
    host->reply_write(call, text("part"));
    host->fail(call, DZ_FAIL_PANICKED, text("half way"));
    return 1;
}

static int32_t has(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    dz_value value;
    host->input(call, &in);
    return reply_text(call, host->state_get(call, in, &value) == 0 ? "yes" : "no");
}

static int32_t write_read_only(void *data, dz_call *call) {
    (void)data;
    uint64_t number;
    if (host->state_put(call, text("k"), 0, text("v")) != DZ_E_READ_ONLY) return 1;
    if (host->state_delete(call, text("k")) != DZ_E_READ_ONLY) return 2;
    if (host->commit(call, &number) != DZ_E_READ_ONLY) return 3;
    if (host->savepoint(call, &number) != DZ_E_READ_ONLY) return 4;
    if (host->state_watch(call, text("k")) != DZ_E_READ_ONLY) return 5;
    if (host->wait_commit(call, 0, DZ_DURABILITY_NODE) != 0) return 6;
    return reply_text(call, "refused");
}

static int32_t fill(void *data, dz_call *call) {
    (void)data;
    static uint8_t block[100000];
    for (int i = 0;; i++) {
        char key[32];
        snprintf(key, sizeof key, "fill %d", i);
        int32_t status = host->state_put(call, text(key), 0, bytes(block, sizeof block));
        if (status != 0) return status;
    }
}

static dz_call *old_call;

static int32_t remember(void *data, dz_call *call) {
    (void)data;
    old_call = call;
    return reply_text(call, "remembered");
}


static int32_t refused_everywhere(dz_call *wrong) {
    dz_slice in;
    dz_value value;
    dz_call_info info = {.size = sizeof info};
    uint8_t byte, *buffer;
    size_t len;
    uint64_t number;
    if (host->call_info(wrong, &info) != DZ_E_INVALID) return 1;
    if (host->input(wrong, &in) != DZ_E_INVALID) return 2;
    if (host->input_read(wrong, &byte, 1, &len) != DZ_E_INVALID) return 3;
    if (host->reply_content_type(wrong, text("a/b")) != DZ_E_INVALID) return 4;
    if (host->reply_alloc(wrong, 1, &buffer) != DZ_E_INVALID) return 5;
    if (host->reply_write(wrong, text("x")) != DZ_E_INVALID) return 6;
    if (host->fail(wrong, 0, text("x")) != DZ_E_INVALID) return 7;
    if (host->state_get(wrong, text("k"), &value) != DZ_E_INVALID) return 8;
    if (host->state_put(wrong, text("k"), 0, text("v")) != DZ_E_INVALID) return 9;
    if (host->state_delete(wrong, text("k")) != DZ_E_INVALID) return 10;
    if (host->commit(wrong, &number) != DZ_E_INVALID) return 11;
    return 0;
}

static int32_t visited(void *ctx, const dz_slice *key, const dz_value *value) {
    (void)key;
    (void)value;
    ++*(int *)ctx;
    return 0;
}

static void *on_another_thread(void *call) {
    /* Its call is not theirs, but they may log and ask whether it is cancelled. */
    intptr_t status = refused_everywhere(call);
    if (status == 0 && host->cancelled(call) != 0) status = 50;
    host->log(call, DZ_LOG_WARN, text("from another thread"));
    return (void *)status;
}

static int32_t misuse(void *data, dz_call *call) {
    (void)data;
    dz_slice hole = {NULL, 5}, endless = {(const uint8_t *)"x", (size_t)-1};
    dz_value value;
    uint8_t *buffer;
    int seen = 0;
    int32_t where;
    if ((where = refused_everywhere(NULL)) != 0) return 100 + where;
    if ((where = refused_everywhere((dz_call *)0x1234)) != 0) return 120 + where;
    if ((where = refused_everywhere(old_call)) != 0) return 140 + where;
    if (host->cancelled(old_call) != 1) return 160;
    if (host->state_get(call, hole, &value) != DZ_E_INVALID) return 1;
    if (host->state_get(call, endless, &value) != DZ_E_INVALID) return 2;
    if (host->state_get(call, text("k"), NULL) != DZ_E_NOT_FOUND) return 3;
    if (host->state_put(call, text(""), 0, text("v")) != DZ_E_INVALID) return 4;
    if (host->state_put(call, text("k"), 0, hole) != DZ_E_INVALID) return 5;
    if (host->state_delete(call, text("none")) != DZ_E_NOT_FOUND) return 6;
    if (host->state_scan(call, hole, visited, &seen) != DZ_E_INVALID) return 7;
    if (host->state_scan(call, text(""), visited, &seen) != 0 || seen != 0) return 8;
    if (host->input(call, NULL) != DZ_E_INVALID) return 9;
    if (host->reply_alloc(call, 1, NULL) != DZ_E_INVALID) return 10;
    if (host->reply_alloc(call, (size_t)-1, &buffer) != DZ_E_TOO_LARGE) return 11;
    if (host->reply_content_type(call, text("a\r\nX: y")) != DZ_E_INVALID) return 12;
    if (host->fail(call, 99, text("x")) != DZ_E_INVALID) return 13;
    if (host->call_info(call, NULL) != DZ_E_INVALID) return 14;
    host->log(NULL, 77, hole);
    host->log((dz_call *)0x1234, DZ_LOG_INFO, text("from nowhere"));
    if (host->declare_type((dz_registry *)call, NULL) != DZ_E_INVALID) return 15;
    pthread_t thread;
    void *status;
    if (pthread_create(&thread, NULL, on_another_thread, call) != 0) return 16;
    pthread_join(thread, &status);
    if (status != NULL) return 200 + (int32_t)(intptr_t)status;
    if (host->reply_alloc(call, 4, &buffer) != 0) return 17;
    if (host->reply_alloc(call, 4, &buffer) != DZ_E_INVALID) return 18;
    if (host->reply_write(call, text("x")) != DZ_E_INVALID) return 19;
    memcpy(buffer, "fine", 4);
    return 0;
}

static int32_t delete_it(void *ctx, const dz_slice *key, const dz_value *value) {
    /* Against the rules, and harmless. */
    dz_call *call = ctx;
    (void)value;
    return host->state_delete(call, *key) != 0;
}

static int32_t scan(void *data, dz_call *call) {
    (void)data;
    for (int i = 0; i < 300; i++) {
        char key[32];
        snprintf(key, sizeof key, "s%03d", i);
        if (host->state_put(call, text(key), 0, text(key)) != 0) return 1;
    }
    int seen = 0;
    if (host->state_scan(call, text("s1"), visited, &seen) != 0 || seen != 100) return 2;
    seen = 0;
    if (host->state_scan(call, text("s"), visited, &seen) != 0 || seen != 300) return 3;
    if (host->state_scan(call, text("s"), delete_it, call) != 0) return 4;
    seen = 0;
    if (host->state_scan(call, text("s"), visited, &seen) != 0 || seen != 0) return 5;
    return reply_text(call, "scanned");
}

static int32_t info(void *data, dz_call *call) {
    (void)data;
    dz_call_info info = {.size = sizeof info};
    if (host->call_info(call, &info) != 0) return 1;
    char out[512];
    int len = snprintf(out, sizeof out, "%.*s/%.*s %.*s %.*s %.*s %llu %d", (int)info.app.len, info.app.ptr,
                       (int)info.process.len, info.process.ptr, (int)info.function.len, info.function.ptr,
                       (int)info.invocation.len, info.invocation.ptr, (int)info.content_type.len,
                       info.content_type.ptr, (unsigned long long)info.epoch,
                       info.deadline_ms > 0 && info.deadline_ms <= 5000);
    printf("%s\n", out);
    host->log(call, DZ_LOG_INFO, text("asked for its facts"));
    return reply(call, out, (size_t)len);
}

static uint64_t count_in(dz_call *call) {
    dz_value value;
    uint64_t count = 0;
    if (host->state_get(call, text("count"), &value) == 0) memcpy(&count, value.ptr, sizeof count);
    return count;
}

static int32_t reply_number(dz_call *call, unsigned long long number) {
    char out[32];
    snprintf(out, sizeof out, "%llu", number);
    return reply_text(call, out);
}

/* A door that functions wait at, one that opens it, and how often it was opened. */
static volatile int door, opened;

static void wait_at_door(void) {
    for (int i = 0; i < 10000 && !door; i++) sleep_ms(1);
}

static int32_t open_door(void *data, dz_call *call) {
    (void)data;
    door = 1;
    opened++;
    return reply_text(call, "open");
}

static int32_t close_door(void *data, dz_call *call) {
    (void)data;
    door = 0;
    return reply_text(call, "closed");
}

/* Adds one to what it saw before it waited; says how often it has run so far. */
static int32_t add_later(void *data, dz_call *call) {
    (void)data;
    static int runs;
    int run = __sync_add_and_fetch(&runs, 1);
    uint64_t count = count_in(call);
    wait_at_door();
    count++;
    int32_t status = host->state_put(call, text("count"), 7, bytes(&count, sizeof count));
    return status == 0 ? reply_number(call, (unsigned long long)run) : status;
}

/* The same, and each run waits for an opening of its own. */
static int32_t add_later_each_time(void *data, dz_call *call) {
    (void)data;
    static int runs;
    int run = __sync_add_and_fetch(&runs, 1);
    uint64_t count = count_in(call) + 1;
    for (int i = 0; i < 10000 && opened < run; i++) sleep_ms(1);
    int32_t status = host->state_put(call, text("count"), 7, bytes(&count, sizeof count));
    return status == 0 ? reply_number(call, (unsigned long long)run) : status;
}

/* As `add_later`, and its reply has begun before. */
static int32_t stream_add_later(void *data, dz_call *call) {
    host->reply_write(call, text("begun "));
    uint64_t count = count_in(call) + 1;
    (void)data;
    wait_at_door();
    return host->state_put(call, text("count"), 7, bytes(&count, sizeof count));
}

/* Only looks at one key, says that its answer rests on it, and writes another. */
static int32_t watch_later(void *data, dz_call *call) {
    (void)data;
    if (host->state_watch(call, text("count")) != 0) return 1;
    wait_at_door();
    int32_t status = host->state_put(call, text("seen"), 0, text("x"));
    return status == 0 ? reply_text(call, "watched") : status;
}

/* Puts "key=value"; with "key*1000" a value of so many bytes, its key over and over. */
static int32_t put(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    if (host->input(call, &in) != 0) return 1;
    size_t key = 0;
    while (key < in.len && in.ptr[key] != '=' && in.ptr[key] != '*') key++;
    if (key == in.len) return 2;
    dz_slice name = bytes(in.ptr, key), value = bytes(in.ptr + key + 1, in.len - key - 1);
    char *large = NULL;
    if (in.ptr[key] == '*') {
        char digits[32] = {0};
        memcpy(digits, value.ptr, value.len < 31 ? value.len : 31);
        value.len = (size_t)atol(digits);
        large = malloc(value.len + 1);
        for (size_t i = 0; i < value.len; i++) large[i] = (char)in.ptr[i % key];
        value.ptr = (uint8_t *)large;
    }
    int32_t status = host->state_put(call, name, 0, value);
    free(large);
    return status == 0 ? reply_text(call, "put") : status;
}

static int32_t get(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    dz_value value;
    if (host->input(call, &in) != 0) return 1;
    int32_t status = host->state_get(call, in, &value);
    return status == 0 ? reply(call, value.ptr, value.len) : status;
}

static int32_t drop(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    if (host->input(call, &in) != 0) return 1;
    return host->state_delete(call, in);
}

static int holds(dz_call *call, const char *key, const char *wanted) {
    dz_value value;
    int32_t status = host->state_get(call, text(key), &value);
    if (wanted == NULL) return status == DZ_E_NOT_FOUND;
    return status == 0 && value.len == strlen(wanted) && memcmp(value.ptr, wanted, value.len) == 0;
}

static int32_t savepoints(void *data, dz_call *call) {
    (void)data;
    uint64_t outer, inner, other, seq;
    if (host->savepoint(call, NULL) != DZ_E_INVALID) return 1;
    host->state_put(call, text("p"), 0, text("before"));
    if (host->savepoint(call, &outer) != 0) return 2;
    host->state_put(call, text("p"), 0, text("outer"));
    dz_value old;
    if (host->state_get(call, text("p"), &old) != 0) return 3;
    if (host->savepoint(call, &inner) != 0) return 4;
    host->state_put(call, text("p"), 0, text("inner"));
    host->state_put(call, text("q"), 0, text("inner"));
    if (host->rollback(call, inner) != 0) return 5;
    if (!holds(call, "p", "outer") || !holds(call, "q", NULL)) return 6;
    if (host->rollback(call, inner) != DZ_E_INVALID || host->release(call, inner) != DZ_E_INVALID) return 7;
    if (host->savepoint(call, &other) != 0) return 8;
    host->state_put(call, text("r"), 0, text("kept"));
    if (host->release(call, other) != 0 || !holds(call, "r", "kept")) return 9;
    if (host->savepoint(call, &other) != 0) return 10;
    if (host->rollback(call, outer) != 0) return 11;
    if (host->release(call, other) != DZ_E_INVALID) return 12;
    if (!holds(call, "p", "before") || !holds(call, "r", NULL)) return 13;
    if (memcmp(old.ptr, "outer", 5) != 0) return 14;
    if (host->savepoint(call, &outer) != 0) return 15;
    host->state_put(call, text("s"), 0, text("kept"));
    if (host->commit(call, &seq) != 0 || seq == 0) return 16;
    if (host->savepoint(call, &other) != 0) return 17;
    host->state_put(call, text("t"), 0, text("kept"));
    if (host->rollback(call, outer) != DZ_E_INVALID || !holds(call, "t", "kept")) return 18;
    return reply_text(call, "taken back");
}

static int32_t update(void *data, dz_call *call) {
    (void)data;
    uint8_t *copy, *again;
    size_t len;
    dz_value value, later;
    if (host->state_update(call, text("u"), &copy, &len) != DZ_E_NOT_FOUND) return 1;
    if (host->state_put(call, text("u"), 9, text("abc")) != 0 || host->commit(call, NULL) != 0) return 2;
    if (host->state_get(call, text("u"), &value) != 0) return 3;
    if (host->state_update(call, text("u"), &copy, &len) != 0 || len != 3) return 4;
    if ((uintptr_t)copy % 16 != 0) return 5;
    copy[0] = 'X';
    if (memcmp(value.ptr, "abc", 3) != 0) return 6;
    if (host->state_get(call, text("u"), &later) != 0 || memcmp(later.ptr, "Xbc", 3) != 0) return 7;
    if (later.fingerprint != 9 || later.version != 0) return 8;
    if (host->state_update(call, text("u"), &again, &len) != 0) return 9;
    again[1] = 'Y';
    if (memcmp(later.ptr, "Xbc", 3) != 0) return 10;
    if (host->state_update(call, text(""), &copy, &len) != DZ_E_INVALID) return 11;
    if (host->state_update(call, text("u"), NULL, &len) != DZ_E_INVALID) return 12;
    return reply_text(call, "updated");
}

struct seen {
    int count;
    char last[64];
};

static int32_t key_seen(void *ctx, const dz_slice *key, const dz_key_info *info) {
    struct seen *seen = ctx;
    if (info->size != sizeof *info || info->len != 6) return 1;
    memcpy(seen->last, key->ptr, key->len);
    seen->last[key->len] = 0;
    return ++seen->count == 150;
}

static int32_t ranges(void *data, dz_call *call) {
    (void)data;
    dz_slice part;
    dz_key_info info = {.size = sizeof info};
    uint64_t seq;
    if (host->state_info(call, text("r000"), &info) != DZ_E_NOT_FOUND) return 1;
    for (int i = 0; i < 200; i++) {
        char key[32];
        snprintf(key, sizeof key, "r%03d", i);
        if (host->state_put(call, text(key), 3, text("middle")) != 0) return 2;
    }
    if (host->state_info(call, text("r007"), &info) != 0 || info.len != 6 || info.version != 0) return 3;
    if (host->commit(call, &seq) != 0) return 4;
    if (host->state_info(call, text("r007"), &info) != 0 || info.fingerprint != 3) return 5;
    if (info.version != seq || info.time_ms == 0) return 6;
    struct {
        dz_key_info known;
    } old = {{.size = 16, .version = 77}};
    if (host->state_info(call, text("r007"), &old.known) != 0 || old.known.size != 16) return 7;
    if (old.known.len != 6 || old.known.version != 77) return 8;
    if (host->state_get_range(call, text("r007"), 3, 2, &part) != 0 || part.len != 2) return 9;
    if (memcmp(part.ptr, "dl", 2) != 0) return 10;
    if (host->state_get_range(call, text("r007"), 4, UINT64_MAX, &part) != 0 || part.len != 2) return 11;
    if (host->state_get_range(call, text("r007"), UINT64_MAX, 1, &part) != 0 || part.len != 0) return 12;
    if (host->state_get_range(call, text("none"), 0, 1, &part) != DZ_E_NOT_FOUND) return 13;
    struct seen seen = {0};
    if (host->state_keys(call, text("r"), text(""), key_seen, &seen) != 0 || seen.count != 150) return 14;
    seen.count = 0;
    if (host->state_keys(call, text("r"), text("r149"), key_seen, &seen) != 0 || seen.count != 50) return 15;
    if (strcmp(seen.last, "r199") != 0) return 16;
    return reply_text(call, "ranged");
}

static int32_t limits(void *data, dz_call *call) {
    (void)data;
    static uint8_t key[65536], value[4 << 20];
    dz_value got;
    dz_key_info info = {.size = sizeof info};
    memset(key, 'k', sizeof key);
    size_t lengths[] = {0, 1025, 65536};
    for (int i = 0; i < 3; i++) {
        int32_t wanted = lengths[i] == 0 ? DZ_E_INVALID : DZ_E_TOO_LARGE;
        dz_slice wrong = bytes(key, lengths[i]);
        if (host->state_put(call, wrong, 0, text("v")) != wanted) return 1;
        if (host->state_get(call, wrong, &got) != wanted) return 2;
        if (host->state_delete(call, wrong) != wanted) return 3;
        if (host->state_info(call, wrong, &info) != wanted) return 4;
        if (host->state_watch(call, wrong) != wanted) return 5;
    }
    if (host->state_put(call, bytes(key, 1024), 0, text("")) != 0) return 6;
    if (host->state_get(call, bytes(key, 1024), &got) != 0 || got.len != 0) return 7;
    if (host->state_put(call, text("v"), 0, bytes(value, sizeof value)) != DZ_E_QUOTA) return 8;
    if (host->state_put(call, text("v"), 0, bytes(value, (size_t)40 << 30)) != DZ_E_TOO_LARGE) return 9;
    uint64_t seq;
    if (host->commit_at(call, DZ_DURABILITY_STORE, &seq) != DZ_E_INVALID) return 10;
    if (host->wait_commit(call, 1, 77) != DZ_E_INVALID) return 11;
    if (host->sync_files(call) != DZ_E_INVALID) return 12;
    return reply_text(call, "limited");
}

/* Commits at a level in the middle, and fails. */
static int32_t commit_at(void *data, dz_call *call) {
    (void)data;
    uint64_t seq = 0;
    if (host->state_put(call, text("at"), 0, text("x")) != 0) return 1;
    if (host->commit_at(call, (uint32_t)number_of(call), &seq) != 0 || seq == 0) return 2;
    if (host->wait_commit(call, seq, DZ_DURABILITY_NODE) != 0) return 3;
    return reply_number(call, (unsigned long long)seq);
}

/* A stream whose commit comes after its bytes. */
static int32_t stream_add(void *data, dz_call *call) {
    (void)data;
    uint64_t count = count_in(call) + 1;
    if (host->reply_write(call, text("streamed")) != 0) return 1;
    return host->state_put(call, text("count"), 7, bytes(&count, sizeof count));
}

/* Returns well when its deadline is over. */
static int32_t too_late(void *data, dz_call *call) {
    (void)data;
    if (host->state_put(call, text("late"), 0, text("x")) != 0) return 1;
    while (!host->cancelled(call)) sleep_ms(1);
    return reply_text(call, "done all the same");
}

static int32_t die(void *data, dz_call *call) {
    (void)data;
    host->state_put(call, text("lost"), 0, text("x"));
    abort();
}

static int32_t declare(const dz_init *init, const char *name, uint32_t concurrency, uint32_t input,
                       int32_t (*entry)(void *, dz_call *)) {
    dz_function function = {.size = sizeof function,
                            .concurrency = concurrency,
                            .input = input,
                            .output = DZ_BYTES,
                            .name = text(name),
                            .doc = text("for a test"),
                            .entry = entry};
    return host->declare_function(init->registry, &function);
}

int32_t denizen_plugin_init(const dz_host *table, const dz_init *init) {
    host = table;
#ifdef TEST_INIT_FAILS
    host->init_failed(init->registry, text("no licence found"));
    return 1;
#endif
    const struct {
        const char *name;
        uint32_t concurrency, input;
        int32_t (*entry)(void *, dz_call *);
    } functions[] = {
        {"echo", DZ_EXCLUSIVE, DZ_BYTES, echo},
        {"add", DZ_EXCLUSIVE, DZ_BYTES, add},
        {"count", DZ_READ_ONLY, DZ_BYTES, count},
        {"append", DZ_EXCLUSIVE, DZ_BYTES, append},
        {"meet", DZ_READ_ONLY, DZ_BYTES, meet},
        {"burn", DZ_EXCLUSIVE, DZ_BYTES, burn},
        {"until_cancelled", DZ_EXCLUSIVE, DZ_BYTES, until_cancelled},
        {"stream_echo", DZ_EXCLUSIVE, DZ_STREAM, stream_echo},
        {"stream_whole", DZ_EXCLUSIVE, DZ_STREAM, stream_whole},
        {"stream_nothing", DZ_READ_ONLY, DZ_STREAM, stream_nothing},
        {"pour", DZ_EXCLUSIVE, DZ_BYTES, pour},
        {"large", DZ_READ_ONLY, DZ_BYTES, large},
        {"inner", DZ_EXCLUSIVE, DZ_BYTES, inner},
        {"refuse", DZ_EXCLUSIVE, DZ_BYTES, refuse},
        {"seven", DZ_EXCLUSIVE, DZ_BYTES, seven},
        {"half", DZ_EXCLUSIVE, DZ_BYTES, half},
        {"half_and_die", DZ_EXCLUSIVE, DZ_BYTES, half_and_die},
        {"pour_and_fail", DZ_EXCLUSIVE, DZ_BYTES, pour_and_fail},
        {"has", DZ_READ_ONLY, DZ_BYTES, has},
        {"write_read_only", DZ_READ_ONLY, DZ_BYTES, write_read_only},
        {"fill", DZ_EXCLUSIVE, DZ_BYTES, fill},
        {"remember", DZ_EXCLUSIVE, DZ_BYTES, remember},
        {"misuse", DZ_EXCLUSIVE, DZ_BYTES, misuse},
        {"scan", DZ_EXCLUSIVE, DZ_BYTES, scan},
        {"info", DZ_EXCLUSIVE, DZ_BYTES, info},
        {"die", DZ_EXCLUSIVE, DZ_BYTES, die},
        {"open_door", DZ_READ_ONLY, DZ_BYTES, open_door},
        {"close_door", DZ_READ_ONLY, DZ_BYTES, close_door},
        {"add_later", DZ_EXCLUSIVE, DZ_BYTES, add_later},
        {"add_later_beside", DZ_CONCURRENT, DZ_BYTES, add_later},
        {"add_later_each_time", DZ_EXCLUSIVE, DZ_BYTES, add_later_each_time},
        {"stream_add_later", DZ_EXCLUSIVE, DZ_BYTES, stream_add_later},
        {"watch_later", DZ_CONCURRENT, DZ_BYTES, watch_later},
        {"add_beside", DZ_CONCURRENT, DZ_BYTES, add},
        {"put", DZ_EXCLUSIVE, DZ_BYTES, put},
        {"put_beside", DZ_CONCURRENT, DZ_BYTES, put},
        {"get", DZ_READ_ONLY, DZ_BYTES, get},
        {"drop", DZ_EXCLUSIVE, DZ_BYTES, drop},
        {"savepoints", DZ_EXCLUSIVE, DZ_BYTES, savepoints},
        {"update", DZ_EXCLUSIVE, DZ_BYTES, update},
        {"ranges", DZ_EXCLUSIVE, DZ_BYTES, ranges},
        {"limits", DZ_EXCLUSIVE, DZ_BYTES, limits},
        {"half_beside", DZ_CONCURRENT, DZ_BYTES, half},
        {"commit_at", DZ_EXCLUSIVE, DZ_BYTES, commit_at},
        {"stream_add", DZ_EXCLUSIVE, DZ_BYTES, stream_add},
        {"too_late", DZ_EXCLUSIVE, DZ_BYTES, too_late},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (declare(init, functions[i].name, functions[i].concurrency, functions[i].input, functions[i].entry) != 0)
            return 1;
    }
    if (declare(init, "echo", 0, 0, echo) != DZ_E_INVALID) return 2;
    if (declare(init, "no/slash", 0, 0, echo) != DZ_E_INVALID) return 3;
    if (declare(init, "bad", 9, 0, echo) != DZ_E_INVALID) return 4;
    static const uint64_t older[] = {5, 6};
    dz_type type = {.size = sizeof type, .fingerprint = 7, .name = text("Count"), .layout = text("u64"),
                    .migrates_from = older, .migrates_from_len = 2};
    if (host->declare_type(init->registry, &type) != 0) return 4;
    /* As a plugin of the first header declares one. */
    dz_type first = {.size = offsetof(dz_type, migrates_from), .fingerprint = 8, .name = text("First"),
                     .layout = text("u8"), .migrates_from = (const uint64_t *)1, .migrates_from_len = 9};
    if (host->declare_type(init->registry, &first) != 0) return 5;
    first.size = sizeof first;
    first.name = text("Wrong");
    return host->declare_type(init->registry, &first) == DZ_E_INVALID ? 0 : 6;
}
