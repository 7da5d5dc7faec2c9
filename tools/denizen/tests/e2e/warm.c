/* Says how long ago it was loaded, and which version it is. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "denizen.h"

#ifndef VERSION
#define VERSION 1
#endif

const uint32_t denizen_plugin_abi = DZ_ABI_VERSION;
static const dz_host *host;
static struct timespec loaded;

static int32_t age(void *data, dz_call *call) {
    (void)data;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (now.tv_sec - loaded.tv_sec) * 1000 + (now.tv_nsec - loaded.tv_nsec) / 1000000;
    char text[64];
    int len = snprintf(text, sizeof text, "%d %ld", VERSION, ms);
    uint8_t *to;
    if (host->reply_alloc(call, (size_t)len, &to) != DZ_OK)
        return -1;
    memcpy(to, text, (size_t)len);
    return DZ_OK;
}

int32_t denizen_plugin_init(const dz_host *h, const dz_init *init) {
    host = h;
    clock_gettime(CLOCK_MONOTONIC, &loaded);
    printf("loaded, version %d\n", VERSION);
    dz_function function = {.size = sizeof function, .concurrency = DZ_EXCLUSIVE, .entry = age};
    function.name.ptr = (const uint8_t *)"age";
    function.name.len = 3;
    return h->declare_function(init->registry, &function);
}
