/* Calls a CNI plugin as a container runtime does, many times, a given number at once, and says how long each call took.
 *
 *   caller PLUGIN IN_FLIGHT CONF JOBS
 *
 * JOBS has a line "CONTAINERID NETNS" per call; CONF goes to each call's stdin; the other CNI_ variables come from the
 * environment. Prints the wall time in ns, then per call "<ns> <exit code>"; what failing calls printed goes to stderr.
 * A call's time is from before the process is made until it has been waited for. Written in C so that what is measured is
 * the plugin and not its caller: making a process costs a Python program some milliseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { JOBS_MAX = 4096, NAME_MAX_ = 256, ANSWER_MAX = 1 << 16, ENV_MAX = 64 };

struct job {
    char id[NAME_MAX_], netns[NAME_MAX_];
    long ns;
    int code;
};

extern char **environ;
static struct job jobs[JOBS_MAX];
static atomic_int next;
static int count;
static char conf[ANSWER_MAX];
static size_t conf_size;
static const char *plugin;

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void call(struct job *job) {
    char id[NAME_MAX_ + 32], netns[NAME_MAX_ + 32], *env[ENV_MAX + 3];
    int n = 0;
    for (char **e = environ; *e && n < ENV_MAX; e++) env[n++] = *e;
    snprintf(id, sizeof id, "CNI_CONTAINERID=%s", job->id);
    snprintf(netns, sizeof netns, "CNI_NETNS=%s", job->netns);
    env[n++] = id;
    env[n++] = netns;
    env[n] = NULL;

    long began = now();
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) die("pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    pid_t pid;
    char *argv[] = {(char *)plugin, NULL};
    if (posix_spawn(&pid, plugin, &actions, NULL, argv, env)) die(plugin);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    if (write(in[1], conf, conf_size) != (ssize_t)conf_size) die("write");
    close(in[1]);
    char answer[ANSWER_MAX];
    size_t size = 0;
    ssize_t got;
    while ((got = read(out[0], answer + size, sizeof answer - size)) > 0) size += (size_t)got;
    close(out[0]);
    int status;
    if (waitpid(pid, &status, 0) != pid) die("waitpid");
    job->ns = now() - began;
    job->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (job->code) fprintf(stderr, "%s: %.*s\n", job->id, (int)size, answer);
}

static void *work(void *unused) {
    int i;
    while ((i = atomic_fetch_add(&next, 1)) < count) call(&jobs[i]);
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: caller PLUGIN IN_FLIGHT CONF JOBS\n");
        return 2;
    }
    plugin = argv[1];
    int in_flight = atoi(argv[2]);
    FILE *f = fopen(argv[3], "r");
    if (!f) die(argv[3]);
    conf_size = fread(conf, 1, sizeof conf, f);
    fclose(f);
    if (!(f = fopen(argv[4], "r"))) die(argv[4]);
    while (count < JOBS_MAX && fscanf(f, "%255s %255s", jobs[count].id, jobs[count].netns) == 2) count++;
    fclose(f);

    long began = now();
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 18);
    pthread_t threads[JOBS_MAX];
    for (int i = 0; i < in_flight; i++)
        if (pthread_create(&threads[i], &small, work, NULL)) die("pthread_create");
    for (int i = 0; i < in_flight; i++) pthread_join(threads[i], NULL);
    printf("%ld\n", now() - began);
    for (int i = 0; i < count; i++) printf("%ld %d\n", jobs[i].ns, jobs[i].code);
    return 0;
}
