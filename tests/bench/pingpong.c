/* Measures small TCP exchanges between two namespaces.
 *
 *   pingpong serve PORT                    answers every byte with a byte, until killed
 *   pingpong ask HOST PORT SECONDS         one connection; prints p50 and p99 of a round trip in microseconds, and trips per second
 *   pingpong connect HOST PORT SECONDS     a new connection for each round trip; prints connections per second
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TRIPS_MAX = 4000000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void at_once(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void *answer(void *argument) {
    int fd = (int)(long)argument;
    char byte;
    at_once(fd);
    while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1) {}
    close(fd);
    return NULL;
}

static void serve(int port) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1024)) die("listen");
    printf("ready\n");
    fflush(stdout);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 16);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        pthread_t thread;
        if (pthread_create(&thread, &small, answer, (void *)(long)fd)) close(fd);
    }
}

static int connected(const char *host, int port) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    if (inet_pton(AF_INET, host, &there.sin_addr) != 1) die(host);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval patience = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&there, sizeof there)) die("connect");
    at_once(fd);
    return fd;
}

static void trip(int fd) {
    char byte = '!';
    if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1) die("round trip");
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void ask(const char *host, int port, double seconds) {
    static double trips[TRIPS_MAX];
    int fd = connected(host, port), count = 0;
    for (int i = 0; i < 200; i++) trip(fd);
    double began = now(), before = began;
    while (before < began + seconds && count < TRIPS_MAX) {
        trip(fd);
        double after = now();
        trips[count++] = after - before;
        before = after;
    }
    qsort(trips, (size_t)count, sizeof *trips, by_size);
    printf("%.2f %.2f %.0f\n", 1e6 * trips[count / 2], 1e6 * trips[count * 99 / 100], count / (before - began));
}

static void connect_often(const char *host, int port, double seconds) {
    struct linger gone = {.l_onoff = 1, .l_linger = 0}; /* no TIME_WAIT: ports would run out */
    long count = 0;
    double began = now();
    while (now() < began + seconds) {
        int fd = connected(host, port);
        trip(fd);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &gone, sizeof gone);
        close(fd);
        count++;
    }
    printf("%.0f\n", (double)count / (now() - began));
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve")) serve(atoi(argv[2]));
    if (argc == 5 && !strcmp(argv[1], "ask")) return ask(argv[2], atoi(argv[3]), atof(argv[4])), 0;
    if (argc == 5 && !strcmp(argv[1], "connect")) return connect_often(argv[2], atoi(argv[3]), atof(argv[4])), 0;
    fprintf(stderr, "usage: pingpong serve PORT | ask HOST PORT SECONDS | connect HOST PORT SECONDS\n");
    return 2;
}
