/* Put before the C library of a runner: counts its syncs in a file, and makes them slow or fail when that file says so. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *control; /* count, fail, delay in ms, do nothing */

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DENIZEN_TEST_SYNCS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) abort();
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) abort();
    control = map;
}

int fdatasync(int fd) {
    __sync_fetch_and_add(&control[0], 1);
    if (control[2]) {
        struct timespec time = {(time_t)(control[2] / 1000), (long)(control[2] % 1000) * 1000000};
        nanosleep(&time, NULL);
    }
    if (control[1]) {
        errno = EIO;
        return -1;
    }
    if (control[3]) return 0;
    return (int)syscall(SYS_fdatasync, fd);
}
