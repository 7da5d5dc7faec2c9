/* A plugin that attacks the node: through its state file, its control sockets (descriptors 3 and 5), its output, its threads. */
#define _GNU_SOURCE
#include <denizen.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

DENIZEN_PLUGIN;

static const dz_host *host;

struct header {
    uint32_t len;
    uint8_t kind, flags;
    uint16_t code;
    uint64_t id;
    uint32_t a, b;
    uint64_t c;
};

enum { CONTROL = 3, RING = 4, ANSWERS = 5, CREDIT = 6, LOG_LINE = 37 };

static int32_t say(dz_call *call, const char *text) {
    host->reply_write(call, dz_text(text));
    return DZ_OK;
}

static int32_t count(void *data, dz_call *call) {
    uint64_t n = 0;
    char text[32];
    dz_value value;
    if (host->state_get(call, dz_text("n"), &value) == DZ_OK && value.len == sizeof n)
        memcpy(&n, value.ptr, sizeof n);
    n++;
    dz_slice bytes = {(const uint8_t *)&n, sizeof n};
    host->state_put(call, dz_text("n"), 0, bytes);
    snprintf(text, sizeof text, "%llu", (unsigned long long)n);
    return say(call, text);
}

/* The descriptor of the state file that can be written to. */
static int state_file(void) {
    struct stat about;
    for (int fd = CONTROL + 1; fd < 32; fd++)
        if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
            return fd;
    return -1;
}

/* Takes the disk: 8 GiB beyond the end, 8 GiB within, and one byte very far away. */
static int32_t grow(void *data, dz_call *call) {
    char text[100];
    int fd = state_file();
    int beyond = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)8 << 30);
    int within = fallocate(fd, 0, 0, (off_t)8 << 30);
    ssize_t far = pwrite(fd, "x", 1, (off_t)8 << 40);
    snprintf(text, sizeof text, "%d %d %d %zd", fd >= 0, beyond, within, far);
    return say(call, text);
}

/* The longest file that it can have, which is empty but for its last byte. */
static int32_t stretch(void *data, dz_call *call) {
    char text[40];
    off_t end = 0;
    for (off_t step = (off_t)1 << 42; step > 0; step /= 2)
        if (pwrite(state_file(), "x", 1, end + step) == 1)
            end += step;
    snprintf(text, sizeof text, "%lld", (long long)end);
    return say(call, text);
}

/* Fills every segment that it has, and behind its end as far as it can, up to 2 MiB. */
static int hoard_all(void) {
    static char bytes[256 << 10];
    struct stat about;
    int longer = 0;
    for (int fd = CONTROL + 1; fd < 64; fd++) {
        if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode) || (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR)
            continue;
        off_t end = about.st_size;
        while (end < 2 << 20 && pwrite(fd, bytes, sizeof bytes, end) == sizeof bytes)
            end += sizeof bytes;
        longer += about.st_size < 2 << 20 && end >= 2 << 20;
    }
    return longer;
}

static int32_t hoard(void *data, dz_call *call) {
    char text[40];
    snprintf(text, sizeof text, "%d", hoard_all());
    return say(call, text);
}

static void *hoard_in_silence(void *data) {
    sleep(2);
    hoard_all();
    return data;
}

/* The same from a thread of its own, when the call is long over and the process idle. */
static int32_t hoard_alone(void *data, dz_call *call) {
    static pthread_t alone;
    return pthread_create(&alone, NULL, hoard_in_silence, NULL);
}

/* Writes the input over its state: an offset (8 bytes, little-endian) and what goes there. */
static int32_t overwrite(void *data, dz_call *call) {
    dz_slice input;
    uint64_t offset;
    host->input(call, &input);
    memcpy(&offset, input.ptr, sizeof offset);
    ssize_t count = pwrite(state_file(), input.ptr + sizeof offset, input.len - sizeof offset, (off_t)offset);
    return count > 0 ? DZ_OK : 1;
}

/* Sends the input to the agent as it is. */
static int32_t frames(void *data, dz_call *call) {
    dz_slice input;
    host->input(call, &input);
    for (size_t at = 0; at < input.len;) {
        ssize_t count = write(ANSWERS, input.ptr + at, input.len - at);
        if (count <= 0)
            break;
        at += (size_t)count;
    }
    return DZ_OK;
}

/* Leaves the agent and goes on. */
static int32_t leave(void *data, dz_call *call) {
    close(CONTROL);
    close(ANSWERS);
    for (;;)
        pause();
}

/* Ends as a runner ends that has met a fault, its disk's for example. */
static int32_t fault(void *data, dz_call *call) { _exit(70); }

/* Takes the ring away over which its process serves its callers. */
static int32_t spoil(void *data, dz_call *call) {
    close(RING);
    return say(call, "spoiled");
}

static int32_t stop_itself(void *data, dz_call *call) {
    syscall(SYS_tgkill, 1, syscall(SYS_gettid), SIGSTOP);
    return say(call, "goes on");
}

static void write_for_ever(int fd, const void *bytes, size_t len) {
    while (write(fd, bytes, len) > 0)
        ;
}

static void *newlines(void *unused) {
    static char bytes[64 << 10];
    memset(bytes, '\n', sizeof bytes);
    write_for_ever(STDOUT_FILENO, bytes, sizeof bytes);
    return NULL;
}

static void *small_frames(uint8_t kind) {
    static struct header headers[2048];
    for (size_t at = 0; at < sizeof headers / sizeof *headers; at++) {
        headers[at].kind = kind;
        headers[at].id = 1;
    }
    write_for_ever(ANSWERS, headers, sizeof headers);
    return NULL;
}

static void *log_lines(void *unused) { return small_frames(LOG_LINE); }
static void *credits(void *unused) { return small_frames(CREDIT); }

/* Floods from a thread of its own, which outlives the call. */
static int32_t flood(void *data, dz_call *call) {
    pthread_t thread;
    void *(*bodies[])(void *) = {newlines, log_lines, credits};
    return pthread_create(&thread, NULL, bodies[(size_t)data], NULL);
}

static int32_t escape(void *data, dz_call *call) {
    host->fail(call, DZ_FAIL_FAILED, dz_text("\033]0;owned\007\033[2J\033[1;32mall is well"));
    return 1;
}

static const struct {
    const char *name;
    dz_function_entry entry;
    size_t data;
} functions[] = {
    {"count", count, 0},         {"grow", grow, 0},         {"stretch", stretch, 0}, {"overwrite", overwrite, 0},
    {"frames", frames, 0},       {"leave", leave, 0},       {"stop", stop_itself, 0}, {"newlines", flood, 0},
    {"fault", fault, 0},         {"hoard", hoard, 0}, {"hoard-alone", hoard_alone, 0},
    {"log-lines", flood, 1},     {"credits", flood, 2},     {"escape", escape, 0},
    {"spoil", spoil, 0},
};

int32_t denizen_plugin_init(const dz_host *given, const dz_init *init) {
    host = given;
    for (size_t at = 0; at < sizeof functions / sizeof *functions; at++) {
        dz_function function;
        memset(&function, 0, sizeof function);
        function.size = sizeof function;
        function.name = dz_text(functions[at].name);
        function.entry = functions[at].entry;
        function.data = (void *)functions[at].data;
        int32_t status = given->declare_function(init->registry, &function);
        if (status != DZ_OK)
            return status;
    }
    return DZ_OK;
}
